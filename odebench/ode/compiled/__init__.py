"""Whole solves compiled by torch: the loop over steps runs in C++, without Python.

``front.py`` is called by ``odebench.ode.solve``; ``forward.py`` and ``backward.py`` hold the two loops, ``graph.py``
compiles them, ``outputs.py`` reads the states at the output times.
"""
