"""The training loop, its plan, log and losses."""
