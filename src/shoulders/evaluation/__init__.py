"""Metrics, the evaluation protocol, confidence intervals, results and reports."""
