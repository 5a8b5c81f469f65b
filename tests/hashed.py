"""A dense retriever without a model: the sum of random vectors, one for each word."""

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from shoulders.retrieval.bi_encoder import TextForm


@lru_cache(100_000)
def _word(word, size):
    seed = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


class Hashed:
    """It counts what it encodes."""

    def __init__(self, size=32, print="0123456789abcdef", name="hashed"):
        self.dimension, self.print, self.name, self.reading, self.encoded = size, print, name, TextForm(), 0

    def fingerprint(self):
        return self.print

    def encode_questions(self, texts):
        rows = [np.sum([_word(word, self.dimension) for word in text.lower().split()], 0) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(len(texts), self.dimension)

    def encode_passages(self, titles, texts):
        self.encoded += len(texts)
        return self.encode_questions([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
