"""Text that is read before a question: retrieved passages, or answers that the model sampled itself."""
