"""Speed and memory against the libraries people use, each figure a ratio of two runs that alternate in one process."""
