"""Reproduce published tables and figures: run the trainings that each needs, and compare the results.

reproductions.yaml defines the trainings. They are an ordinary sweep, in a folder named after the reproduction. This
package does not import torch.
"""
