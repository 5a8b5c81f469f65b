"""A backbone whose weights two processes share: the same losses and trained weights as in one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoulders import FrozenLM, SoftPrompt
from shoulders.engine.precomputed import Contexts
from shoulders.errors import UnknownName, UsageError
from shoulders.training.losses import scaffold_loss
from toys import ACCELERATE, PROCESSES, in_processes

RUN = """
import json, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import torch
from accelerate import PartialState
from dataclasses import replace
from safetensors.torch import save_file
from transformers.utils import logging
from shoulders import Answering, DeepPrompt, FrozenLM, LowRank, Question, Recursion, RecursionShape, SoftPrompt, answer
from shoulders.errors import UsageError
from shoulders.scaffolds.low_rank import LowRankConfig
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import scaffold_loss
from toys import PLAN, source

logging.disable_progress_bar()
torch.set_num_threads(1)
lm = FrozenLM.load({model!r}, dtype="float32", parallel=sys.argv[2])
found = {{"fingerprint": lm.fingerprint(), "checksum": lm.checksum(), "kinds": {{}}, "refused": {{}}}}
weights = {{}}
torch.manual_seed(0)
kinds = {{
    "prompt": (SoftPrompt.from_vocabulary(lm, length=4), False),
    "suffix": (SoftPrompt.from_vocabulary(lm, length=4, placement="suffix"), True),
    "recursion": (Recursion(lm, RecursionShape(layers=1)), True),
    "low rank": (LowRank.new(LowRankConfig(rank=2), lm), True),
    "deep": (DeepPrompt.from_vocabulary(lm, length=4), False),
    "written": (Recursion(lm, RecursionShape(rank=2, keys_values=True)), False),
}}
for name, (scaffold, on) in kinds.items():
    plan = replace(PLAN, steps=3, batch_size=8, positions_at_once=64, checkpointing=on)
    losses = []
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    try:
        fit(scaffold, scaffold_loss(lm, scaffold), source(lm, scaffold, plan), plan, hooks=hooks)
    except UsageError as error:
        found["refused"][name] = str(error)
        continue
    said = answer([Question("what is 3?"), Question("what is 10?")], lm, scaffold.eval(), Answering(longest=4))
    found["kinds"][name] = {{"losses": losses, "said": said}}
    weights.update({{f"{{name}}.{{key}}": value for key, value in scaffold.state_dict().items()}})
layers = [one for name, one in lm.model.named_parameters() if ".layers." in name or ".h." in name]
found["held"] = sum(getattr(one, "_local_tensor", one).numel() for one in layers)
found["processes"] = PartialState().num_processes
if PartialState().is_main_process:
    save_file(weights, sys.argv[1] + ".safetensors")
    Path(sys.argv[1] + ".json").write_text(json.dumps(found))
PartialState().destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "launcher"), [("fsdp", PROCESSES), ("tensor", PROCESSES), ("fsdp", ACCELERATE), ("tensor", ACCELERATE)]
)
def test_two_processes_that_share_the_weights_train_as_one(lm, tmp_path, parallel, launcher):
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parents[1]), model=lm.name))
    found = []
    for name, how, two in (("one", "", False), ("two", parallel, True)):
        in_processes([str(script), str(tmp_path / name), how], two=two, launcher=launcher)
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    one, two = found
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (two["fingerprint"], two["checksum"]) == (lm.fingerprint(), lm.checksum())
    assert two["held"] < 0.6 * one["held"]
    assert not one["refused"]
    assert [*two["refused"]] == (["low rank", "deep", "written"] if parallel == "tensor" else [])
    assert all("backbone.parallel=fsdp" in why for why in two["refused"].values())
    for kind, run in one["kinds"].items():
        if kind in two["refused"]:
            continue
        assert two["kinds"][kind]["losses"] == pytest.approx(run["losses"], rel=1e-4)
        assert two["kinds"][kind]["said"] == run["said"]
    weights = [load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weight, weights[0][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "launcher"), [("fsdp", ACCELERATE), ("tensor", PROCESSES)])
def test_the_command_line_trains_and_measures(lm, tmp_path, parallel, launcher):
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"backbone.parallel={parallel}", "suite.tasks=kind_of",
        "scaffold.length=4", "training.steps=2", "training.batch_size=4", "development.limit=2", "test.limit=2",
        "test.longest=4", "development.longest=4",
    ]  # fmt: skip
    arguments = ["-m", "shoulders", "train", "bundled_soft_prompt", *values, "--out", str(tmp_path / "run")]
    in_processes(arguments, two=True, launcher=launcher)
    assert "average" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_one_process_alone_is_refused(lm):
    with pytest.raises(UsageError, match="shares weights among processes, and this is one alone: torchrun"):
        FrozenLM.load(lm.name, device="cpu", parallel="fsdp")
    with pytest.raises(
        UsageError, match=r"backbone.parallel=tensor .* backbone.quantize=nf4 keeps them in another way"
    ):
        FrozenLM.load(lm.name, device="cpu", parallel="tensor", quantize="nf4")
    with pytest.raises(UnknownName, match="did you mean 'tensor'"):
        FrozenLM.load(lm.name, device="cpu", parallel="tensors")


def test_keys_and_values_of_some_heads_are_not_stored(lm, monkeypatch):
    monkeypatch.setattr(lm, "parallel", "tensor")
    prompt = SoftPrompt.from_vocabulary(lm, length=2, placement="suffix")
    with pytest.raises(UsageError, match=r"training.contexts keeps .* all heads.*: leave it empty"):
        scaffold_loss(lm, prompt, contexts=Contexts(lm))
