"""Published tables and figures trained again: what each needs (reproductions.yaml), its runs, ours beside theirs.

The runs are a sweep like any other, in a folder fixed by the name. No torch is imported here.
"""
