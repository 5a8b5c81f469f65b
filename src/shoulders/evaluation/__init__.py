"""Metrics, the protocol of measuring, intervals, results and reports."""
