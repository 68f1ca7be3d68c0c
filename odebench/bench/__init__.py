"""The engine measured beside the other solver libraries that are installed.

``works`` are the problems, as data; ``peers`` the libraries, one adapter each (``remote`` and ``diffrax_server``
for the one that needs a process of its own); ``reference`` is the truth that errors are measured against;
``measure`` holds the meters; ``contest`` lets all of them run; ``report`` writes what came out.
"""
