"""Passes by difficulty: a cascade of scaffolds around one frozen model; an input stops once its answer is sure."""
