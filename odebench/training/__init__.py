"""Training: one loop for every task, checkpoints, signals, distributed training, and the evaluation of trained runs."""
