"""A recipe chooses its retriever."""

import pytest

from shoulders.errors import SourceNotFound, UnknownName, UsageError
from shoulders.records import Question
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.building import build
from shoulders.retrieval.dense import build_faiss
from shoulders.retrieval.hybrid import HybridSearcher
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.vectors import encode
from shoulders.runs.build import new_evidence
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from tiny import save_encoder


@pytest.fixture
def index(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for city in ("Oslo", "Rome", "Lima"):
        (texts / f"{city}.txt").write_text(f"{city} has parks.")
    build([str(texts)], tmp_path / "index", Cutting())
    return Index(tmp_path / "index")


@pytest.fixture
def evidence(index, lm):
    def source(*values):
        own = ["suite.lengths.input=60", "suite.lengths.target=8", "development.longest=3", "test.longest=3"]
        own += [f"evidence.index={index.folder}", *values]
        return new_evidence(with_overrides(recipe_named("reader"), own), lm, 3)

    return source


def test_passages_come_from_the_retriever_of_the_recipe(index, evidence, tmp_path):
    for family in ("bert", "roberta"):
        save_encoder(family, tmp_path / family)
        build_faiss(encode(index, BiEncoder.load(str(tmp_path / family), device="cpu"), family))
    chosen = [
        ["evidence.retriever=sparse"],
        ["evidence.retriever=dense", "evidence.dense=bert"],
        ["evidence.retriever=dense", "evidence.dense=roberta"],
        ["evidence.retriever=rrf", "evidence.dense=bert"],
        ["evidence.retriever=hybrid", "evidence.dense=bert", "evidence.weight=3"],
        ["evidence.retriever=hybrid", "evidence.dense=bert", "evidence.weight=4"],
    ]
    sources = [evidence(*values) for values in chosen]
    assert len({source.fingerprint for source in sources}) == len(chosen)
    assert [source.fingerprint for source in sources] == [evidence(*values).fingerprint for values in chosen]
    found = [source.find([Question("parks of Oslo")])[0] for source in sources]
    assert [len(some) for some in found] == [3] * len(chosen)
    assert found[-1][0].title == found[0][0].title == "Oslo"
    assert isinstance(sources[-1].searcher, HybridSearcher)
    assert sources[-1].searcher.weight == 4
    with pytest.raises(UsageError, match=r"bert, roberta.*--dense NAME; evidence.dense=NAME"):
        evidence("evidence.retriever=dense")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("evidence.retriever=dens", UnknownName, "'dense'"),
        ("evidence.weight=-1", UsageError, "it must be at least 0"),
        ("evidence.weight=inf", UsageError, "it must be at least 0"),
        ("evidence.retriever=hybrid", SourceNotFound, "shoulders encode"),
    ],
)
def test_retrievers_that_are_none(evidence, value, error, message):
    with pytest.raises(error, match=message):
        evidence(value)
