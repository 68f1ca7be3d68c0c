"""Run many trainings (jobs) with one command, on this machine, by SLURM or by a launcher of Hydra; and resume them.

A sweep is a folder. Its file sweep.yaml lists the jobs as text: the overrides of `odebench train`. Each job is this
command in its own process, which writes its record to a folder chosen in advance. This package does not import torch.
"""
