"""Data: digits and regression tables as datamodules, and their building blocks.

``digits`` and ``tables`` are the datamodules, ``images`` serves images from memory, ``batches``
draws mini-batches, and ``files`` reads the files in ``sample`` and downloads those on a mirror.
"""
