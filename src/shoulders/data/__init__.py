"""Tasks, templates, the training mixture and text. Knows no PyTorch."""
