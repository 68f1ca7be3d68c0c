"""The training: one loop for every task, its checkpoints, its signals, and the runs that are made of them."""
