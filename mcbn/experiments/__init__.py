"""Published experiments, each reproduced by one command.

They use the package, which does not depend on them: ``python -m mcbn.experiments.uci --help``.
"""
