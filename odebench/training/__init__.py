"""Train models and evaluate trained runs: one loop for every task, checkpoints, signals, several processes."""
