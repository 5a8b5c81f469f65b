"""What runs scaffolds around the frozen model: batches, decoding, questions in and answers out."""
