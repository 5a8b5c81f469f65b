"""Rivals of a scaffold from the command line: trained on the same examples, measured, loaded again."""

import json

import pytest

from commands import run
from tiny import save_numbers


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_numbers(tmp_path_factory.mktemp("suite") / "numbers", range(40), range(40, 50), range(50, 62))


@pytest.fixture
def values(lm, suite):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.steps=4",
        "training.batch_size=4", "training.save_every=2", "training.evaluate_every=2", "scaffold.length=4",
        "development.limit=4", "test.limit=6", "test.wordings=0", "test.longest=4", "development.longest=4",
        "rival.learning_rate=0.01",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_and_evaluate(values, lm, tmp_path, kind, dtype):
    before = lm.checksum()
    own = [*values, f"backbone.dtype={dtype}"]
    run("train", "bundled_soft_prompt", *own, "--rival", kind, "--out", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["rival"]["kind"] == kind
    run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert [row["measured"] for row in again["wordings"]] == [row["measured"] for row in results["wordings"]]
    assert again["scaffold"]["fingerprint"] == results["scaffold"]["fingerprint"]
    assert lm.checksum() == before
