"""Metrics, protocol, intervals and reports."""
