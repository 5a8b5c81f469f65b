"""The engine runs scaffolds around the frozen model: batches, decoding, and from questions to answers."""
