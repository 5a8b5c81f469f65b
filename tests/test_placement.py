"""Every kind of scaffold on an accelerator, without one: a pretended device, on which tensors of two devices never meet.

What runs there are the usual functions: training, decoding, ranking, reading evidence, the scheduler. They give what
they give on the CPU, so that a value that was dropped on the way is seen, too.
"""

from dataclasses import replace

import pytest
import torch

from mixed import SMALL
from pretended import DEVICE, Elsewhere, placed, placed_encoder, pretended
from shoulders.engine.batches import encode
from shoulders.engine.inference import Answering, Sampling, answer, rank, sample, stream
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import KINDS, Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.losses import scaffold_loss
from tiny import FAMILIES, TEXTS
from toys import layered, moved

QUICK = ("llama", "gpt2", "gemma2")
ASKED = [Question(text, evidence="France is in Europe. " if number % 2 else "") for number, text in enumerate(TEXTS[:4])]
TARGETS = ["Paris", "the planet Mars", "good", "four"]
CHOICES = [["Paris", "London is large"], ["Mars", "Venus", "the Moon"], ["good", "bad"], ["4", "5", "6", "22"]]


def kinds(lm, tiny_encoder):
    """Scaffolds of all kinds and placements by name, away from their starts."""
    prompts = {f"soft {place}": SoftPrompt(from_vocabulary(lm)(4), place) for place in Placement}
    bert = tiny_encoder("bert")
    inputs = {f"input {place}": InputPrompt(bert, lm, SMALL, norm=1.0, placement=place) for place in Placement}
    twice = Recursion(lm, RecursionShape(passes=2, layers=1, before=True, after=True))
    return {
        "bare": Bare(),
        **prompts,
        **inputs,
        "input self": InputPrompt(lm, lm, SMALL),
        "recursion": twice,
        "recursion of a prompt": Recursion(lm, RecursionShape(layers=1, residual=True), prompts["soft suffix"]),
        **{name: moved(one) for name, one in layered(lm, tiny_encoder).items()},
    }


def step(lm, scaffold):
    """The loss of a training step and its gradients, in memory."""
    rows = [encode(question, lm, target) for question, target in zip(ASKED, TARGETS, strict=True)]
    scaffold.zero_grad()
    loss = scaffold_loss(lm, scaffold)(scaffold, rows)
    if any(True for _ in scaffold.parameters()):
        loss.backward()
    return loss.detach().cpu(), {name: weight.grad.cpu() for name, weight in scaffold.named_parameters()}


def asked(lm, scaffold):
    """What it answers and samples, and how it ranks choices."""
    how = Answering(longest=5)
    answers = answer(ASKED, lm, scaffold, how)
    return answers, sample(ASKED[:2], lm, scaffold, Sampling(count=2), how), rank(ASKED, CHOICES, lm, scaffold)


def check_same(name, found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}")
    torch.testing.assert_close(found[1], wanted[1], rtol=2e-3, atol=2e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("family", QUICK)
def test_all(family, tiny_lm, tiny_encoder, tmp_path):
    import time
    lm = tiny_lm(family)
    wanted = {}
    t = time.time()
    for name, scaffold in kinds(lm, tiny_encoder).items():
        wanted[name] = step(lm, scaffold), asked(lm, scaffold)
        scaffold.around(lm).made_for(lm).save_pretrained(tmp_path / name)
    print("cpu", time.time() - t)
    with pretended():
        there = placed(lm)
        for name, (trained, told) in wanted.items():
            t = time.time()
            scaffold = Scaffold.load(tmp_path / name, there)
            try:
                assert all(isinstance(one, Elsewhere) for one in scaffold.parameters())
                check_same(name, step(there, scaffold), trained)
                found = asked(there, scaffold)
                assert found[0] == told[0]
                print(name, "ok", round(time.time() - t, 2))
            except Exception as e:
                import traceback
                print(name, "FAILED", "".join(traceback.format_exception(e)[-16:])[:5000])
