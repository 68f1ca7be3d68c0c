"""Whole solves compiled by torch: the loop over steps runs in C++, without Python.

``run.py`` is called by ``ForwardSolve``; ``forward.py`` and ``backward.py`` hold the two loops, ``graph.py`` compiles
them, ``outputs.py`` reads the states at the output times. ``odebench.ode.gradients.compiled_exact`` is the gradient.
``fixed.py`` holds the loops over fixed steps, ``adjoint.py`` and ``fixed_adjoint.py`` those of the continuous adjoint.
"""
