"""The data: digits and regression tables as datamodules, and what they are made of.

``digits`` and ``tables`` are the datamodules, ``images`` hands out images in memory, ``batches``
draws mini-batches, and ``files`` reads and fetches what is in ``sample`` or on a mirror.
"""
