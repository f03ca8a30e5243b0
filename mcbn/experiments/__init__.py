"""Published experiments, each reproduced by one command.

They use the package and are no part of it: ``python -m mcbn.experiments.uci --help``.
"""
