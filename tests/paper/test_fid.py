"""Fusion-in-Decoder: passages are encoded apart and decoded together, and it trains, resumes and is measured."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from commands import run
from shoulders.answering.models import model_info
from shoulders.errors import DataError, UsageError
from shoulders.paper.fid import FusedExample, FusionInDecoder, train_fid
from shoulders.records import Passage
from shoulders.retrieval.building import build
from shoulders.retrieval.passages import Cutting
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.store.files import read_json
from tiny import save_encoder_decoder

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern")
PASSAGES = [Passage(f"{city} has {n} parks.", 1.0, city) for n, city in enumerate(CITIES)]


@pytest.fixture(scope="module", params=["t5", "bart"])
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    save_encoder_decoder(request.param, folder)
    return folder


@pytest.fixture
def recipe(saved, tmp_path):
    """A reader of three short passages of cities, by a tiny model."""
    rows = [{"title": one.title, "text": one.text} for one in PASSAGES]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(tmp_path / "cities.jsonl")], tmp_path / "index", Cutting())
    asked = [{"question": f"How many parks has {city}?", "answers": [str(n)]} for n, city in enumerate(CITIES)]
    for part, some in (("train", asked), ("dev", asked[:2]), ("test", asked[2:])):
        (tmp_path / f"parks.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return [
        "rival.kind=fid", "rival.length=60", "rival.learning_rate=0.005", f"backbone.name={saved}",
        "backbone.dtype=float32", f"suite.source=qa:{tmp_path}/parks", f"evidence.index={tmp_path}/index",
        "evidence.passages=3", "training.batch_size=3", "training.steps=4", "training.evaluate_every=2",
        "training.save_every=2", "development.longest=3", "test.longest=3", "training.positions_at_once=200",
    ]  # fmt: skip


def named(values):
    return with_overrides(recipe_named("reader"), values)


def test_passages_are_encoded_apart_and_decoded_together(saved, recipe):
    model = FusionInDecoder.load(str(saved), named(recipe))
    theirs, read = AutoModelForSeq2SeqLM.from_pretrained(saved).eval(), AutoTokenizer.from_pretrained(saved)
    texts = [f"question: how many? title: {one.title} context: {one.text}" for one in PASSAGES[:3]]
    assert model.sources("how many?", PASSAGES[:3]) == [
        read(text, truncation=True, max_length=60).input_ids for text in texts
    ]
    rows, wanted = [], 0.0
    for count, answer in ((3, "three"), (1, "a lot of parks")):
        rows.append(FusedExample(model.sources("how many?", PASSAGES[:count]), model.model.target_ids(answer)))
        with torch.no_grad():
            encoder = theirs.get_encoder()
            apart = [encoder(torch.tensor([ids])).last_hidden_state for ids in rows[-1].sources]
            encoded, labels = BaseModelOutput(torch.cat(apart, 1)), torch.tensor([rows[-1].target])
            likelihood = -theirs(encoder_outputs=encoded, labels=labels).loss.item() * labels.shape[1]
            said = theirs.generate(encoder_outputs=encoded, max_new_tokens=4, do_sample=False, num_beams=1)
        (found,) = model.likeliest([rows[-1].sources], 4)
        assert found.text == read.decode(said[0], skip_special_tokens=True).strip()
        assert model.scores(rows[-1].sources, [answer])[0] == pytest.approx(likelihood, rel=1e-4)
        wanted -= likelihood
    assert model(rows).item() != pytest.approx(wanted, rel=1e-3)  # dropout
    model.model.model.train = lambda _mode=True: None
    assert model(rows).item() == pytest.approx(wanted, rel=1e-3)


def test_it_is_trained_and_measured(saved, recipe, lm, tmp_path):
    out = tmp_path / "run"
    told = run("train", "reader", *recipe, "--out", out)
    assert "trained parameters" in told
    result = read_json(out / "results.json")
    assert (result["scaffold"]["kind"], result["retrieval"]["packed"]) == ("fid", 3)
    assert result["retrieval"]["recall_at_input"] == 100.0  # the question names the city
    run("evaluate", out, "--out", tmp_path / "again.json")
    assert read_json(tmp_path / "again.json")["wordings"] == result["wordings"]
    start, best = (AutoModelForSeq2SeqLM.from_pretrained(one).state_dict() for one in (saved, out / "best"))
    moved = {name for name in best if not torch.equal(best[name], start[name])}
    assert len(moved) > 0.8 * len(best)
    with pytest.raises(UsageError, match="measured only"):
        model_info(str(out)).load(lm)
    with pytest.raises(UsageError, match="fid answers from passages"):
        train_fid(named([*recipe, "evidence.kind="]), tmp_path / "none")


def test_a_stopped_training_goes_on_as_if_it_had_not(saved, recipe, tmp_path, monkeypatch):
    whole = train_fid(named(recipe), tmp_path / "whole")
    save = FusionInDecoder.forward

    def stopping(self, rows):
        stopping.calls += 1
        if stopping.calls == 4:
            raise KeyboardInterrupt
        return save(self, rows)

    stopping.calls = 0
    monkeypatch.setattr(FusionInDecoder, "forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_fid(named(recipe), tmp_path / "stopped")
    monkeypatch.undo()
    assert train_fid(named(recipe), tmp_path / "stopped", resume=True).best_score == whole.best_score
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_it_trains_on_the_examples_of_the_others_and_refuses_what_it_does_not_know(recipe, tmp_path):
    with pytest.raises(UsageError, match=r"training\.average=examples is not known to fid"):
        train_fid(named([*recipe, "training.average=examples"]), tmp_path / "average")
    with pytest.raises(DataError, match="none of 6 examples can be trained on"):
        train_fid(named([*recipe, "suite.lengths.target=1"]), tmp_path / "long")
