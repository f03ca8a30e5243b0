"""The method: one trained network as many estimators.

``mc_batch_norm`` is the wrapper. ``statistics`` has what a mini-batch leaves behind, ``estimators``
runs all of them at once; the other modules see to it that this changes nothing but the time.
"""
