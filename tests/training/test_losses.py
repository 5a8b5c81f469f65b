"""Language modelling through a scaffold: what a Connector is pretrained on."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import perplexity
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import TextSource, language_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import PackedText

DOCUMENTS = [f"{'The cat sat on the mat. ' * 3}Number {n}." for n in range(9)]
PLAN = TrainPlan(steps=30, batch_size=4, learning_rate=3e-3, positions_at_once=64)


def trained(lm, scaffold, plan=PLAN, **rest):
    losses = []
    source = TextSource(PackedText(DOCUMENTS, lm, 16, plan.seed), plan.batch_size, plan.positions_at_once, 0)
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    fit(scaffold, language_loss(lm, scaffold), source, plan, hooks=hooks, **rest)
    return losses


def test_the_perplexity_of_the_bare_model_is_its_own(any_lm):
    packed = PackedText(DOCUMENTS, any_lm, 16, seed=0)
    sequences = [packed.take() for _ in range(5)]
    ids = torch.tensor(sequences)
    with torch.no_grad():
        logits = any_lm.model(ids).logits[:, :-1]
    wanted = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    found = perplexity(any_lm, Bare(), sequences)
    assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-3)
    assert found.tokens == 5 * 15
    text = "".join(any_lm.text(list(row[1:])) for row in sequences)
    assert found.bits_per_byte == pytest.approx(wanted.item() * 75 / math.log(2) / len(text.encode()), rel=1e-3)


@pytest.mark.parametrize("shape", [RecursionShape(layers=1), RecursionShape(layers=1, residual=True)])
def test_a_connector_learns_to_predict_text(lm, shape):
    scaffold, frozen = Recursion(lm, shape), lm.checksum()
    losses = trained(lm, scaffold, groups=scaffold.learning_rates(3e-3, 3e-2))
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert lm.checksum() == frozen


def test_a_resumed_pretraining_is_the_uninterrupted_one(lm, tmp_path):
    plan = replace(PLAN, steps=6, save_every=3)
    torch.manual_seed(4)
    whole = Recursion(lm, RecursionShape(layers=1))
    losses = trained(lm, whole, plan)
    torch.manual_seed(4)
    trained(lm, Recursion(lm, RecursionShape(layers=1)), replace(plan, steps=3), folder=tmp_path)
    again = Recursion(lm, RecursionShape(layers=1))
    assert trained(lm, again, plan, folder=tmp_path) == losses[3:]
    for mine, own in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, own)


def test_a_prompt_written_from_the_text_is_refused(lm):
    """It would read the tokens it is to predict."""
    scaffold = InputPrompt(lm, lm, InputPromptShape(length=4, encoder_length=2, head_width=8))
    for one in (scaffold, Recursion(lm, RecursionShape(), scaffold)):
        with pytest.raises(UsageError, match="would read the text that it is to predict"):
            language_loss(lm, one)
    language_loss(lm, Recursion(lm, RecursionShape(), SoftPrompt(from_vocabulary(lm)(4))))
