"""A small run in a process of its own, for tests that kill it or start it twice."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parents[1]))


def killed_run(model: str, folder: Path) -> None:
    """Train a prompt for 24 steps with a checkpoint at each, and write the losses down."""
    from transformers.utils import logging

    from shoulders.backbone.frozen import FrozenLM
    from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
    from shoulders.training.loop import Hooks, fit
    from shoulders.training.losses import scaffold_loss
    from toys import PLAN, source

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    lm = FrozenLM.load(model, dtype="float32", device="cpu")
    plan = replace(PLAN, steps=24, save_every=1)
    losses: list[float] = []
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    fit(prompt, scaffold_loss(lm, prompt), source(lm, prompt, plan), plan, folder=folder, hooks=hooks)
    if PartialState().is_main_process:
        found = {"losses": losses, "processes": PartialState().num_processes}
        (folder / "losses.json").write_text(json.dumps(found))
