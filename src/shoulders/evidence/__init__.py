"""Text that is put before a question: retrieved passages, or answers that the model sampled itself."""
