"""Benchmarks of speed and memory against other libraries: each figure is a ratio of two runs that alternate."""
