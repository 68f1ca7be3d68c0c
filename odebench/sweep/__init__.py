"""Many jobs from one command: expanded, all validated, then run here or by SLURM, followed and resumed.

A sweep is a folder. Its jobs stand in sweep.yaml as text, the overrides of `odebench train`; each is run by that
command in a process of its own and leaves a record in a folder fixed beforehand. No torch is imported here.
"""
