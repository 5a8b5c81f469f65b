"""Rows of different scaffolds in one batch are the rows that each scaffold has alone."""

import pytest
import torch

from mixed import asked, several
from shoulders.backbone.caches import Memory
from shoulders.backbone.choosing import Choice
from shoulders.engine.batches import encode, question_batch, training_batch
from shoulders.engine.decode import Decode, decode, generate
from shoulders.engine.together import together
from shoulders.errors import UsageError
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.low_rank import LowRank
from shoulders.scaffolds.program import Pass, direct
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import TEXTS
from toys import moved

STEPS = 8


class Recorded(Choice):
    """The likeliest tokens, and the logits that they were chosen by."""

    def choose(self, logits, rows, **rest):
        self.logits = [*getattr(self, "logits", []), logits]
        return super().choose(logits, rows, **rest)


@torch.inference_mode()
def test_scaffolds_share_a_batch_and_each_row_is_the_row_alone(any_lm, tiny_encoder):
    scaffolds = several(any_lm, tiny_encoder)
    batches = list(asked(any_lm, scaffolds))

    def rows(scaffold, given):
        # No token ends a row, so that every row is compared over all steps.
        return Decode(any_lm, scaffold, given, longest=STEPS + 1, shortest=STEPS + 1, choice=Recorded(any_lm.ends))

    mixed = [rows(*pair) for pair in zip(scaffolds, batches, strict=True)]
    assert len(list(decode(mixed, any_lm))) == STEPS + 1
    for together_, scaffold, given in zip(mixed, scaffolds, batches, strict=True):
        alone = rows(scaffold, given)
        for _ in decode([alone], any_lm):
            pass
        assert together_.ids == alone.ids
        assert len(alone.choice.logits) == STEPS + 1
        for found, wanted in zip(together_.choice.logits, alone.choice.logits, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_passes_of_all_scaffolds_are_one_forward(lm, tiny_encoder, monkeypatch):
    """The longest recursion has three passes: so many forwards of the backbone, whatever else is in the batch."""
    # Where the text before an edit is read bare, or by the model as encoder, there is a pass more.
    one_read = (SoftPrompt, InputPrompt)
    scaffolds = [one for one in several(lm, tiny_encoder) if one.encoder is not lm]
    scaffolds = [one for one in scaffolds if isinstance(one, one_read) or not one.reads_before]
    batches = list(asked(lm, scaffolds))
    rows = []
    forward = type(lm.model.base_model).forward

    def counting(self, *arguments, **named):
        if self is lm.model.base_model:
            rows.append(len(named["inputs_embeds"]))
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(lm.model.base_model), "forward", counting)
    with torch.no_grad():
        together([one.program(given, Memory()) for one, given in zip(scaffolds, batches, strict=True)], lm)
    every = sum(len(given.embeds) for given in batches)
    assert len(rows) == 3
    assert rows[0] == every
    assert rows[2] < rows[1] < every


def test_gradients_of_a_mixed_batch_are_those_alone(lm, tiny_encoder):
    """Training without memories: what each scaffold learns does not depend on who shares the pass."""
    scaffolds = [one for one in several(lm, tiny_encoder)[:25] if not isinstance(one, Bare)]
    batches = [
        training_batch([encode(Question(TEXTS[n % 4]), lm, "Paris"), encode(Question("Two?"), lm, "four")], lm, one)
        for n, one in enumerate(scaffolds)
    ]
    states = together([one.program(batch.given) for one, batch in zip(scaffolds, batches, strict=True)], lm)
    for scaffold, batch, mixed in zip(scaffolds, batches, states, strict=True):
        weights = [weight for weight in scaffold.parameters() if weight.numel()]
        found = torch.autograd.grad(lm.loss(mixed, batch.labels), weights, retain_graph=True)
        wanted = torch.autograd.grad(lm.loss(scaffold.states(lm, batch.given), batch.labels), weights)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_rows_join_and_leave_between_steps(any_lm, questions):
    """A row that joins later, and rows that end earlier, change nothing for the others."""
    first, second = SoftPrompt(from_vocabulary(any_lm)(4)), Recursion(any_lm, RecursionShape(layers=1))
    given = [
        question_batch([encode(q, any_lm)], any_lm, one) for q, one in zip(questions, (first, second), strict=False)
    ]
    rows = [Decode(any_lm, first, given[0], longest=4)]
    for step, _ in enumerate(decode(rows, any_lm)):
        if step == 1:
            rows.append(Decode(any_lm, second, given[1], longest=6))
    assert rows[0].ids == generate(any_lm, first, given[0], longest=4)
    assert rows[1].ids == generate(any_lm, second, given[1], longest=6)


@pytest.mark.parametrize("family", ["qwen3_5"])
def test_layers_that_keep_a_state_run_one_after_the_other(tiny_lm, questions, family):
    lm = tiny_lm(family)
    scaffolds = [Bare(), SoftPrompt(from_vocabulary(lm)(4))]
    batches = [question_batch([encode(q, lm)], lm, one) for q, one in zip(questions[1:], scaffolds, strict=False)]
    mixed = [Decode(lm, one, given, longest=4) for one, given in zip(scaffolds, batches, strict=True)]
    for _ in decode(mixed, lm):
        pass
    assert [rows.ids for rows in mixed] == [
        generate(lm, one, given, longest=4) for one, given in zip(scaffolds, batches, strict=True)
    ]


def logits_of(rows):
    """The logits of every step of a decode."""
    return torch.stack(rows.choice.logits)


def recorded(lm, scaffold, given, longest=STEPS):
    return Decode(lm, scaffold, given, longest=longest, shortest=longest, choice=Recorded(lm.ends))


def finished(lm, *rows):
    for _ in decode(rows, lm):
        pass
    return rows


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_prefix_in_every_layer_and_a_connector_of_a_norm_alone_share_a_batch(tiny_lm, questions, family):
    """Keys and values of no text; and blocks whose cache has no layers to count positions by."""
    lm = tiny_lm(family)
    scaffolds = [
        DeepPrompt.from_vocabulary(lm, length=5),
        Recursion(lm, RecursionShape(layers=0)),
        SoftPrompt(from_vocabulary(lm)(7)),
        DeepPrompt.from_vocabulary(lm, length=2, placement="suffix"),
    ]
    batches = list(asked(lm, scaffolds))
    mixed = finished(lm, *(recorded(lm, *pair) for pair in zip(scaffolds, batches, strict=True)))
    for rows, scaffold, given in zip(mixed, scaffolds, batches, strict=True):
        (alone,) = finished(lm, recorded(lm, scaffold, given))
        assert rows.ids == alone.ids
        torch.testing.assert_close(logits_of(rows), logits_of(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
def test_edits_of_neighbours_change_no_bit_of_a_bare_row(tiny_lm, questions, family):
    """In a batch of one shape: another row is edited, or it is not."""
    lm = tiny_lm(family)
    bare, other = (question_batch([encode(one, lm)], lm, Bare()) for one in questions[:2])
    updates = moved(LowRank.new(LowRank.Config(rank=2), lm))
    beside = together([Bare().program(bare), updates.program(other)], lm)
    alone = together([Bare().program(bare), Bare().program(other)], lm)
    assert torch.equal(beside[0], alone[0])
    assert not torch.allclose(beside[1], alone[1], atol=1e-3)


def test_a_bare_row_is_bit_identical_where_it_runs_alone(lm, questions):
    """Another row shares the batch and has just ended: the forwards that are left are those of the row alone."""
    bare = question_batch([encode(questions[0], lm)], lm, Bare())
    (alone,) = finished(lm, recorded(lm, Bare(), bare))
    other = Recursion(lm, RecursionShape(layers=1))
    rows = [Decode(lm, other, question_batch([encode(questions[2], lm)], lm, other), longest=2)]
    for _ in decode(rows, lm):
        if rows[0].done and len(rows) == 1:
            rows.append(recorded(lm, Bare(), bare))
    assert torch.equal(logits_of(rows[1]), logits_of(alone))
    with torch.no_grad():
        (states,) = together([Bare().program(bare)], lm)
        assert torch.equal(states, lm.states(bare.embeds))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mixtral"])
def test_a_scaffold_of_nan_breaks_its_own_rows_alone(tiny_lm, questions, family):
    lm = tiny_lm(family)
    bad = [
        SoftPrompt(torch.full((3, lm.width), torch.nan), Placement.SUFFIX),
        moved(LowRank.new(LowRank.Config(rank=2), lm), by=torch.nan),
        moved(DeepPrompt.from_vocabulary(lm, length=3), by=torch.nan),
    ]
    good = [SoftPrompt(from_vocabulary(lm)(4)), moved(LowRank.new(LowRank.Config(rank=2), lm)), Bare()]
    scaffolds = [good[0], *bad, *good[1:]]
    batches = [question_batch([encode(q, lm) for q in questions], lm, one) for one in scaffolds]
    draws = torch.rand(len(questions), 5)

    def rows(scaffold, given):
        return Decode(lm, scaffold, given, longest=5, shortest=5, choice=Recorded(lm.ends, draws))

    mixed = finished(lm, *(rows(*pair) for pair in zip(scaffolds, batches, strict=True)))
    assert all(logits_of(rows).isnan().all() for rows in mixed[1:4])
    for number in (0, 4, 5):
        (alone,) = finished(lm, rows(scaffolds[number], batches[number]))
        assert mixed[number].ids == alone.ids
        torch.testing.assert_close(logits_of(mixed[number]), logits_of(alone), rtol=1e-4, atol=1e-4)


def test_steps_of_a_decode_are_not_padded_to_a_text_that_joins(lm, questions, monkeypatch):
    """Eight rows go on by a token each while a long text is read: eight positions, not eight times the text."""
    rows = [Decode(lm, Bare(), question_batch([encode(questions[0], lm)] * 8, lm, Bare()), longest=4, shortest=4)]
    late = question_batch([encode(questions[2], lm)], lm, Bare())
    positions = []
    forward = type(lm.model.base_model).forward

    def counting(self, *arguments, **named):
        positions.append(named["inputs_embeds"].shape[:2].numel())
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(lm.model.base_model), "forward", counting)
    for step, _ in enumerate(decode(rows, lm)):
        if step == 0:
            rows.append(Decode(lm, Bare(), late, longest=2, shortest=2))
    assert sorted(positions[1:3]) == [8, late.embeds.shape[1]]
    assert positions[3:] == [9, 8]


def test_a_request_of_another_kind_is_refused(lm, questions):
    def program():
        yield "a pass, please"

    for run in (lambda: direct(program(), lm), lambda: together([program()], lm)):
        with pytest.raises(UsageError, match="yielded a str: it can yield Pass, Encode and Blocks"):
            run()


def test_a_scaffold_that_forgets_the_text_is_refused(lm, questions):
    """Its second token would be predicted from the first alone."""

    class Forgetful(Scaffold):
        length = 0

        def program(self, given, memory=None):
            return (yield Pass(given.embeds, given.mask))

        def description(self):
            return {}

        rebuilt = new = classmethod(lambda cls, *_: cls())

    given = question_batch([encode(questions[0], lm)], lm, Bare())
    with pytest.raises(UsageError, match="leaves its memory empty"):
        generate(lm, Forgetful(), given, longest=2)
