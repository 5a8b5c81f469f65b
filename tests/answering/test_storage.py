"""A cascade on disk: what comes back, and what is refused."""

import json
import math
import os
import shutil

import pytest
import torch

from shoulders.answering.calibration import Point
from shoulders.answering.cascade import CascadeAnswerer, load_stage
from shoulders.answering.spec import AnswerSpec
from shoulders.answering.stages import ADAPTIVE, Calibration, Cascade, Stage, fingerprint, is_cascade, read, save
from shoulders.engine.inference import Answering
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UsageError, WrongBackbone
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Question
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

THRESHOLDS = (-12.25, math.inf)
CHOSEN = Point(THRESHOLDS, 1.5, 40.0)


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def adaptive(lm, runs):
    """Saved in runs/adaptive, its stages beside it."""
    scaffolds = {"soft": SoftPrompt(from_vocabulary(lm)(3)), "twice": Recursion(lm, RecursionShape(layers=1))}
    for name, scaffold in scaffolds.items():
        scaffold.made_for(lm).save_pretrained(runs / name)
    stages = [Stage.of(Bare()), *(Stage.of(one, str(runs / name)) for name, one in scaffolds.items())]
    made = Cascade(tuple(stages), THRESHOLDS, "margin")
    curve = [Point((-math.inf, -math.inf), 1.0, 30.0), CHOSEN]
    save(runs / "adaptive", made, lm, Calibration("margin", 1.5, CHOSEN, curve, {"name": "r"}), {"commit": "c"})
    return made


def test_saved_and_loaded_is_unsaved(lm, adaptive, runs):
    stored = read(runs / "adaptive")
    assert (stored.calibration.budget, stored.calibration.chosen) == (1.5, CHOSEN)
    assert stored.calibration.curve[0].thresholds == (-math.inf, -math.inf)
    assert stored.calibration.recipe == {"name": "r"}
    again = stored.load(lm, load_stage)
    assert (again.thresholds, again.rule) == (THRESHOLDS, "margin")
    assert [stage.passes for stage in again.stages] == [1, 1, 2]
    assert fingerprint(again) == fingerprint(adaptive)
    asked = [Question(f"What is {n}?") for n in range(6)]
    found, wanted = (CascadeAnswerer(lm, one, Answering(4)).decide(asked) for one in (again, adaptive))
    assert found == wanted


def test_the_file_is_plain_json(adaptive, runs):
    """JSON has no infinity; other readers than Python's refuse it."""

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((runs / "adaptive" / ADAPTIVE).read_text(), parse_constant=refuse)
    assert content["chosen"]["thresholds"] == [-12.25, "inf"]
    assert [stage["name"] for stage in content["stages"]] == ["bare", "../soft", "../twice"]
    assert content["commit"] == "c"


def test_a_tree_of_runs_can_be_moved_and_read_from_anywhere(lm, adaptive, runs, tmp_path, monkeypatch):
    runs.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert is_cascade("adaptive")
    assert fingerprint(read(tmp_path / "elsewhere" / "adaptive").load(lm, load_stage)) == fingerprint(adaptive)


def test_a_stage_is_never_replaced_by_its_cascade(lm, adaptive, runs):
    calibration = read(runs / "adaptive").calibration
    inside = runs / "adaptive" / "stage"
    adaptive.stages[1].scaffold.save_pretrained(inside)
    made = Cascade((Stage.of(Bare()), Stage.of(adaptive.stages[1].scaffold, str(inside))), (0.0,))
    with pytest.raises(SaveFailed, match=r"stage lies in .*adaptive, which is replaced as a whole"):
        save(runs / "adaptive", made, lm, calibration, {})
    with pytest.raises(SaveFailed, match="contains other files"):
        save(runs, adaptive, lm, calibration, {})
    assert Scaffold.load(inside, lm)


def test_a_stage_that_was_trained_again_is_refused(lm, adaptive, runs):
    scaffold = Scaffold.load(runs / "soft", lm)
    with torch.no_grad():
        next(iter(scaffold.parameters()))[0] += 1
    scaffold.save_pretrained(runs / "soft")
    with pytest.raises(UsageError, match=r"stage 2 of .*adaptive, .*soft, is not what its threshold was .*calibrate"):
        read(runs / "adaptive").load(lm, load_stage)


def test_a_stage_of_the_same_weights_and_other_passes_is_refused(lm, adaptive, runs):
    shared = Recursion(lm, RecursionShape(layers=1, shared=True))
    shared.load_state_dict(adaptive.stages[2].scaffold.state_dict())
    longer = Recursion(lm, RecursionShape(passes=3, layers=1, shared=True))
    longer.load_state_dict(shared.state_dict())
    longer.made_for(lm).save_pretrained(runs / "twice")
    with pytest.raises(UsageError, match=r"with 2 passes; now fingerprint \w+ with 3"):
        read(runs / "adaptive").load(lm, load_stage)


def test_a_stage_whose_candidates_come_from_another_prompt_is_refused(lm, adaptive, runs):
    """Textual recursion: the threshold was chosen for what one first prompt samples."""
    choice = EvidenceChoice("candidates", str(runs / "soft"), count=2, longest=3)
    second = SoftPrompt(from_vocabulary(lm, 5)(2)).made_for(lm, answering=AnswerSpec(evidence=choice).as_json())
    second.save_pretrained(runs / "textual")
    stages = (load_stage("bare", lm), load_stage(str(runs / "textual"), lm))
    assert [stage.passes for stage in stages] == [1, 2]
    point = Point((0.0,), 1.0, 1.0)
    save(runs / "over-text", Cascade(stages, (0.0,)), lm, Calibration("probability", 2.0, point, [point], {}), {})
    assert read(runs / "over-text").load(lm, load_stage).stages[1].evidence
    first = Scaffold.load(runs / "soft", lm)
    with torch.no_grad():
        next(iter(first.parameters()))[0] += 1
    first.save_pretrained(runs / "soft")
    with pytest.raises(UsageError, match=r"with 2 passes, evidence \w+; now fingerprint \w+ with 2 passes, evidence"):
        read(runs / "over-text").load(lm, load_stage)


def test_a_stage_that_is_gone_is_named(lm, adaptive, runs):
    shutil.rmtree(runs / "twice")
    with pytest.raises(SourceNotFound, match=r"stage 3 of .*adaptive: there is no scaffold folder '.*twice'; put it"):
        read(runs / "adaptive").load(lm, load_stage)


def test_another_backbone_is_refused(tiny_lm, adaptive, runs):
    with pytest.raises(WrongBackbone, match="was calibrated around"):
        read(runs / "adaptive").load(tiny_lm("gpt2"), load_stage)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 3}, "format 3, this version reads 2: update shoulders"),
        ({"format": 1}, "format 1, this version reads 2: calibrate again"),
        ({"stages": [{"name": "x"}]}, "does not describe a cascade"),
        ({"chosen": {"thresholds": ["many"], "passes": 1.0, "score": 1.0}}, "does not describe a cascade"),
        ({"curve": None}, "does not describe a cascade"),
    ],
)
def test_broken_files_are_refused(adaptive, runs, change, said):
    file = runs / "adaptive" / ADAPTIVE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CorruptFile, match=said):
        read(runs / "adaptive")


def test_a_folder_killed_between_two_renames_is_found(lm, adaptive, runs):
    os.rename(runs / "adaptive", runs / ".adaptive.old")
    assert is_cascade(runs / "adaptive")
    assert read(runs / "adaptive").load(lm, load_stage)
