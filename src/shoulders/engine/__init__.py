"""Drivers of programs: rows of different scaffolds in one batch, and generation over them."""
