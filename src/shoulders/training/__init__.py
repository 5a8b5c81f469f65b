"""The training loop, its plan, checkpoints and log."""
