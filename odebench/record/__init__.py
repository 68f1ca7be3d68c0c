"""What a run leaves in its folder.

``schema`` and ``reader`` are free of torch and may be used by every room; ``writer``, ``tensorboard``,
``manifest`` and ``meters`` belong to training. Nothing is imported here, so that reading stays fast.
"""
