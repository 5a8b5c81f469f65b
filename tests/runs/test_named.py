"""Names that can be asked, and names that are refused because they do not answer."""

import json

import pytest

from rankers import save_bert
from shoulders.retrieval.reranker import Reranker


@pytest.fixture
def reranker(tmp_path):
    """A tiny re-ranker, as a run leaves it."""
    made = Reranker.start(save_bert(tmp_path / "bert"), dtype="float32")
    made.save(tmp_path / "ranked" / "best", made.about)
    made.save(tmp_path / "across" / "all" / "best", made.about)
    return tmp_path


@pytest.mark.parametrize("command", [("ask", "hi"), ("threshold",), ("sample",)])
def test_what_orders_passages_is_refused_with_what_it_is_for(reranker, refused, command):
    for name in ("ranked", "ranked/best", "across"):
        told = refused(command[0], reranker / name, *command[1:])
        assert f"{reranker / name} holds a re-ranker, which puts passages in order and writes no answers" in told
        assert f"evidence.reranker={reranker / name}" in told
    (reranker / "recipe.json").write_text(json.dumps({"kind": "retriever"}))
    assert f"shoulders encode INDEX --retriever {reranker / 'best'}" in refused(command[0], reranker, *command[1:])
