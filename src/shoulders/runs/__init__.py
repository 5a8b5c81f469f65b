"""Runs: training, measuring and keeping what was trained."""
