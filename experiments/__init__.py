"""Recorded experiments: question, command, configuration, results with provenance, verdict."""
