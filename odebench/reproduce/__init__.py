"""Reproduce published tables and figures: what each needs (reproductions.yaml), its runs, and the comparison.

The runs are an ordinary sweep, in a folder named after the reproduction. This package does not import torch.
"""
