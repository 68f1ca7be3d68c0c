"""Write the files of a run into its folder, and read them.

``layout`` and ``reader`` do not import torch and may be used by every package; ``writer``, ``tensorboard`` and
``profiling`` are for training. This file imports nothing, so that reading stays fast.
"""
