"""BM25 by bm25s over the library's own terms: what the library's engines are compared with."""

import bm25s
import numpy as np

from shoulders.retrieval.search import ScoredPassage, best_first


class ExactBM25:
    """A searcher that scores every passage, with any k1 and b."""

    def __init__(self, passages, analyser, k1, b):
        passages = list(passages)
        self.analyser, self.factor = analyser, k1 + 1  # which Lucene leaves out, and tantivy does not
        self.numbers = [passage.id for passage in passages]
        self.engine = bm25s.BM25(method="lucene", k1=k1, b=b)
        self.engine.index([analyser.terms(passage.searched) for passage in passages], show_progress=False)

    def scores(self, query):
        """Return the score of every passage."""
        terms = [term for term in self.analyser.terms(query) if term in self.engine.vocab_dict]
        return self.factor * self.engine.get_scores(terms) if terms else np.zeros(len(self.numbers))

    def search(self, queries, k):
        """Return for each query the k passages with the highest scores, of those that have a term of it."""
        return [
            best_first([ScoredPassage(n, float(s)) for n, s in zip(self.numbers, scores, strict=True) if s > 0], k)
            for scores in map(self.scores, queries)
        ]
