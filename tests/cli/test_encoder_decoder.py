"""A sequence-to-sequence model from the command line, by the protocol of everything else."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ViTConfig

from commands import run
from shoulders.evaluation.report import results_table
from shoulders.evaluation.results import read_result
from tiny import save_encoder_decoder, save_numbers, tokenizer


@pytest.fixture
def suite(tmp_path):
    return save_numbers(tmp_path / "suite" / "numbers", range(12), range(12, 18), range(18, 30))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "t5"
    save_encoder_decoder("t5", folder)
    return folder


def values(model, suite):
    return ["bare", "--recipe", "bundled_soft_prompt", f"backbone.name={model}", "backbone.dtype=float32",
            f"suite.source={suite}", "test.limit=0", "test.wordings=0", "test.longest=4"]  # fmt: skip


def read(path):
    return json.loads(path.read_text())


def test_it_is_ranked_and_generates_as_transformers_does(model, lm, suite, tmp_path):
    printed = run("evaluate", *values(model, suite), "--out", tmp_path / "t5.json")
    assert "numbers" in printed
    found = read(tmp_path / "t5.json")
    theirs, read_as = AutoModelForSeq2SeqLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)

    def likelihood(n, choice):
        given, labels = (read_as(text, return_tensors="pt").input_ids for text in (f"Is {n} even or odd?", choice))
        with torch.no_grad():
            return -theirs(input_ids=given, labels=labels).loss.item() * labels.shape[1]

    def generated(n):
        ids = theirs.generate(**read_as(f"After {n} comes", return_tensors="pt"), max_new_tokens=4, do_sample=False)
        return read_as.decode(ids[0], skip_special_tokens=True).strip()

    ranked, counted = found["wordings"]
    chosen = ["even" if likelihood(n, "even") > likelihood(n, "odd") else "odd" for n in range(18, 30)]
    right = [[float(choice == ("even", "odd")[n % 2])] for n, choice in zip(range(18, 30), chosen, strict=True)]
    assert (ranked["metric"], ranked["measured"]) == ("accuracy", right)
    assert [row["answer"] for row in counted["samples"]] == [generated(18), generated(19)]
    assert (found["trained"], found["scaffold"]["kind"], found["truncated"]) == (0, "bare", 0)
    assert found["backbone"]["name"] == str(model)
    run("evaluate", *values(lm.name, suite), "--out", tmp_path / "causal.json")
    causal = read(tmp_path / "causal.json")
    assert set(found) == set(causal)
    assert found["examples_hash"] == causal["examples_hash"]
    assert f"| {ranked['task']} | Sums |" in results_table(
        [read_result(tmp_path / f"{name}.json") for name in ("t5", "causal")]
    )


def test_inputs_are_cut_at_the_suites_length_and_may_lack_an_end(model, suite, tmp_path):
    run("evaluate", *values(model, suite), "suite.lengths.input=3", "--out", tmp_path / "cut.json")
    assert read(tmp_path / "cut.json")["truncated"] == 24
    for end in ("true", "false"):
        run("evaluate", *values(model, suite), f"backbone.input_end={end}", "--out", tmp_path / f"{end}.json")
    one, other = (read(tmp_path / f"{end}.json") for end in ("true", "false"))
    assert other["recipe"]["backbone"]["input_end"] is False
    assert one["wordings"] != other["wordings"]


def test_what_it_cannot_do_is_said(refused, model, suite, tmp_path):
    said = refused("evaluate", *values(model, suite), "evidence.kind=candidates", "evidence.scaffold=bare")
    assert "evidence.kind=candidates is for causal models" in said
    training = [f"backbone.name={model}", f"suite.source={suite}", "--out", tmp_path / "run"]
    assert "has an encoder and a decoder, and a backbone is a causal" in refused(
        "train", "bundled_soft_prompt", *training
    )
    ViTConfig().save_pretrained(tmp_path / "vit")
    tokenizer().save_pretrained(tmp_path / "vit")
    assert "AutoModelForCausalLM" in refused("evaluate", *values(tmp_path / "vit", suite))
