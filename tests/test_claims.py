"""The claims in one place: the committed file and page are what the script makes of the recorded experiments."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from experiments import claims
from experiments.sweep import cells

from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.recursion import RecursionShape
from shoulders.store.files import read_json

FOUND = claims.found_claims()


def test_the_committed_claims_are_what_the_script_makes():
    assert read_json(claims.NUMBERS) == json.loads(json.dumps(claims.as_json(FOUND))), "run: make claims"
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(FOUND), "run: make claims"


def test_every_claim_names_what_it_was_made_from():
    for name, (claim, found) in FOUND.items():
        assert name == claim.name
        assert found.seeds, name
        assert found.source, name
        assert all((claims.HERE / file).exists() for file in found.source), name
        assert found.low is None or found.low <= found.value <= found.high, name
    assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)


@pytest.mark.parametrize(
    ("interval", "least", "wanted"),
    [
        ((0.5, 2.0), 0.0, claims.HOLDS),
        ((-0.5, 2.0), 0.0, claims.OPEN),
        ((-0.5, 2.0), -1.0, claims.HOLDS),
        ((-3.0, -0.1), 0.0, claims.FAILS),
        ((None, None), 0.0, claims.HOLDS),
        ((None, None), 2.0, claims.FAILS),
    ],
)
def test_a_verdict_follows_from_interval_and_bound(interval, least, wanted):
    claim, found = FOUND["two_passes_minus_one"]
    assert claims.verdict(claim, found) == claims.FAILS
    found = replace(found, value=1.0, low=interval[0], high=interval[1])
    assert claims.verdict(replace(claim, least=least), found) == wanted


def test_what_is_not_recorded_yet_is_left_out(monkeypatch, tmp_path):
    assert {claim.name for claim in claims.CLAIMS} - set(FOUND) <= {"input_dependent_minus_lora",
        "input_dependent_minus_full", "input_dependent_minus_input_prompt", "input_dependent_minus_shared",
        "deep_reader_minus_lora_reader", "textual_minus_majority", "reranker_em"}  # fmt: skip
    monkeypatch.setattr(claims, "HERE", tmp_path)
    assert claims.found_claims() == {}


def test_recall_at_the_input_has_an_interval_where_it_was_recorded_by_example(monkeypatch):
    found = {"ours": (0, 1, -1, 0), "theirs": (-1, 0, -1, 2)}

    def results(_folder, *names):
        recorded = [
            {"retrieval": {"first_at_input": found[name]}, "recipe": {"training": {"seed": 0}}} for name in names
        ]
        return [SimpleNamespace(name=name, content=one) for name, one in zip(names, recorded, strict=True)]

    monkeypatch.setattr(claims, "_results", results)
    estimate = claims.at_input("000-somewhere", "ours", "theirs")
    assert estimate.value == 25.0
    assert estimate.low == 0.0
    assert 25.0 < estimate.high <= 100.0


@pytest.mark.parametrize("place", sorted(claims.HERE.glob("**/grid.json")), ids=lambda place: place.parent.name)
def test_every_row_of_a_grid_is_a_recipe(place):
    """A recipe's values are renamed now and then, and what was recorded must run again."""
    grid = read_json(place)
    if "shapes" in grid:  # of `experiments.damping`
        with_overrides(recipe_named("text_recursion"), grid["common"])
        assert all(RecursionShape(layers=0, **values) for values in grid["shapes"].values())
    else:
        names = [run.name for run in cells(grid)]
        assert names
        assert len({*names}) == len(names)
