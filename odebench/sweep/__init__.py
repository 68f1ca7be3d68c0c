"""Many trainings from one command: expanded, validated, run locally, by SLURM or by Hydra's launchers, and resumed.

A sweep is a folder. sweep.yaml lists its jobs as text, the overrides of `odebench train`. That command runs each job in
its own process and writes its record to a folder chosen in advance. This package does not import torch.
"""
