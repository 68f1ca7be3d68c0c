"""Compare odebench's solver with the other solver libraries that are installed.

``cases`` has the initial value problems, ``libraries`` one adapter per library (diffrax runs in a separate process:
``diffrax_client``, ``diffrax_server``), ``reference`` the solutions that errors are measured against, and ``measure``
the counters and timers. ``comparison`` runs all of it, and ``report`` writes the results.
"""
