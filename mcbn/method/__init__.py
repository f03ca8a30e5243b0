"""The method: one trained network as many estimators.

``mc_batch_norm`` is the wrapper, ``statistics`` records the statistics of a mini-batch, and
``estimators`` runs all estimators at once; the other modules ensure that only the speed changes.
"""
