"""Tasks, templates, the training mixture and batches."""
