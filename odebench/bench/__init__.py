"""Compare the solver with the other solver libraries that are installed.

``cases`` holds the initial value problems, ``libraries`` one adapter per library (diffrax runs in a separate process:
``diffrax_client``, ``diffrax_server``), ``reference`` the solutions that errors are measured against, ``measure`` the
counters and timers. ``comparison`` runs all of it, ``report`` writes the results.
"""
