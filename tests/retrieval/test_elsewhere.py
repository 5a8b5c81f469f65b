"""Names of folders that are given in one folder and used in another."""

import json

import pytest

from shoulders.errors import HubUnreachable
from shoulders.runs.ranking_recipes import ranking_recipes
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.store.files import absolute_name, read_json
from tiny import save_encoder


@pytest.fixture
def here(folder, tmp_path, shoulders, monkeypatch):
    """The folder with an index in it, and vectors of an encoder that lies beside it."""
    monkeypatch.chdir(tmp_path)
    save_encoder("bert", tmp_path / "models" / "tiny")
    assert shoulders("index", folder, "--out", "cities.index")[0] == 0
    assert shoulders("encode", "cities.index", "--retriever", "models/tiny")[0] == 0
    return tmp_path


def test_dense_search_from_another_folder(here, shoulders, refused, monkeypatch):
    index = here / "cities.index"
    assert read_json(index / "dense" / "models-tiny" / "manifest.json")["encoder"]["name"] == str(here / "models/tiny")
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert shoulders("search", index, "Oslo", "--retriever", "dense")[0] == 0
    (here / "models").rename(here / "moved")
    said = refused("search", index, "Oslo", "--retriever", "dense")
    for part in (f"the index {index}", f"made by '{here}/models/tiny'", "--dense NAME", f"shoulders encode {index}"):
        assert part in said


def test_an_encoder_that_looks_like_a_hub_name_and_is_gone(here, refused, monkeypatch):
    path = here / "cities.index" / "dense" / "models-tiny" / "manifest.json"
    manifest = read_json(path)
    manifest["encoder"]["name"] = "runs/gone"
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr("shoulders.retrieval.vectors.BiEncoder.load", _missing)
    assert "shoulders encode" in refused("search", here / "cities.index", "Oslo", "--retriever", "dense")


def _missing(name, **_):
    raise HubUnreachable(name)


def test_recipes_keep_absolute_folders(here):
    given = ["evidence.index=cities.index", "evidence.kind=retrieved", "evidence.reranker=models/tiny"]
    evidence = with_overrides(recipe_named("reader"), given).evidence
    assert (evidence.index, evidence.reranker) == (str(here / "cities.index"), str(here / "models" / "tiny"))
    assert with_overrides(ranking_recipes()["reranker"], ["index=cities.index"]).index == evidence.index
    named = with_overrides(recipe_named("reader"), ["evidence.reranker=cross-encoder/ms-marco", "evidence.index="])
    assert (named.evidence.reranker, named.evidence.index) == ("cross-encoder/ms-marco", "")


def test_lasting_names(here):
    assert absolute_name("models/tiny|org/name") == f"{here}/models/tiny|org/name"
    assert absolute_name("package:models") == "package:models"
    assert absolute_name("") == ""


def test_several_vectors_and_none_named(here, shoulders, refused):
    assert shoulders("encode", "cities.index", "--retriever", "models/tiny", "--name", "other")[0] == 0
    said = refused("search", "cities.index", "Oslo", "--retriever", "dense")
    assert "(models-tiny, other): name one (--dense NAME; evidence.dense=NAME in a recipe)" in said
    assert shoulders("search", "cities.index", "Oslo", "--retriever", "hybrid", "--dense", "other")[0] == 0


def test_a_weight_without_a_sum_is_refused(here, shoulders, refused):
    for retriever in ("sparse", "dense", "rrf"):
        said = refused("search", "cities.index", "Oslo", "--retriever", retriever, "--weight", 2)
        assert f"{retriever} has none: add --retriever hybrid" in said
    assert shoulders("search", "cities.index", "Oslo", "--retriever", "hybrid", "--weight", 2)[0] == 0


def test_no_hits_of_dense_search_are_not_about_words(here, shoulders, monkeypatch):
    monkeypatch.setattr("shoulders.retrieval.dense.DenseSearcher.search", lambda _, queries, __: [[] for _ in queries])
    said = shoulders("search", "cities.index", "Oslo", "--retriever", "dense")[1]
    assert said == "no passage was found for 'Oslo'\n"
