"""`shoulders report prompts`: table 8 of the paper, from generated prompts."""

import json
import random

import numpy as np
import pytest
import torch

from shoulders.errors import UsageError
from shoulders.paper.prompts_report import (
    DIFFERENT,
    SAME_DATA_SET,
    SAME_TEMPLATE,
    distances,
    generator_of,
    prompt_map,
    similarities,
    write_prompts_report,
)
from shoulders.records import Example, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

WORDINGS = {
    ("animals", "bark"): "Answer with one word: which animal barks, the cat or the dog number {n}?",
    ("animals", "name"): "Name the animal that barks: {n}.",
    (
        "reviews",
        "film",
    ): "Is this review good or bad? The film was {n} minutes long, but every minute of it was worth it.",
    ("reviews", "price"): "The film was {n}. Was it worth the price of the ticket?",
}
ROWS = 5


@pytest.fixture
def examples():
    return [
        Example(task, template, f"validation:{n}", Question(text.format(n=n)), "x", ("x",))
        for (task, template), text in WORDINGS.items()
        for n in range(ROWS)
    ]


@pytest.fixture
def generator(lm, tiny_encoder):
    return InputPrompt(tiny_encoder("bert"), lm, InputPromptShape(length=4, encoder_length=3, head_width=8))


def alike(generator, examples, **options):
    return similarities(generator, [example.question for example in examples], **options)


def test_similarities_are_those_of_prompts_generated_one_by_one(generator, examples):
    encoder = generator.encoder
    with torch.no_grad():
        prompts = [generator.prompt(encoder.source_tokens([one.question.whole], 3))[0] for one in examples]
    wanted = [[torch.cosine_similarity(a, b, dim=-1).mean().item() for b in prompts] for a in prompts]
    for positions in (16, 100, 4096):
        told = []
        found = alike(
            generator, examples, positions_at_once=positions, on_done=lambda done, _, told=told: told.append(done)
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert told[-1] == len(examples)
    assert len(set(np.round(np.ravel(wanted), 6))) > 10  # prompts differ


def test_prompts_of_a_template_lie_nearer_than_those_of_other_data_sets(generator, examples):
    found = distances(examples, alike(generator, examples))
    assert found[SAME_TEMPLATE].mean < found[SAME_DATA_SET].mean
    assert found[SAME_TEMPLATE].mean < found[DIFFERENT].mean
    assert found[SAME_TEMPLATE].pairs == 4 * ROWS * (ROWS - 1) // 2
    assert found[SAME_DATA_SET].pairs == 2 * ROWS * (ROWS - 1)  # one record in two templates is no pair
    assert found[DIFFERENT].pairs == (2 * ROWS) ** 2


def test_distances_by_hand():
    rows = [("a", "t", "1"), ("a", "t", "2"), ("a", "u", "1"), ("b", "t", "1")]
    examples = [Example(task, template, row, Question("?"), "x", ("x",)) for task, template, row in rows]
    near = np.array([[1, 0.9, 0.1, 0.5], [0.9, 1, 0.7, 0.25], [0.1, 0.7, 1, 0], [0.5, 0.25, 0, 1]])
    found = distances(examples, near)
    assert (found[SAME_TEMPLATE].pairs, found[SAME_TEMPLATE].std) == (1, 0)
    assert found[SAME_TEMPLATE].mean == pytest.approx(0.1)
    assert found[SAME_DATA_SET].pairs == 1  # the second row of t with the first of u
    assert found[SAME_DATA_SET].mean == pytest.approx(0.3)
    assert found[DIFFERENT].mean == pytest.approx(0.75)
    assert found[DIFFERENT].std == pytest.approx(np.std([0.5, 0.75, 1.0]))
    alone = distances(examples[:2], near[:2, :2])
    assert (alone[DIFFERENT].pairs, alone[DIFFERENT].mean) == (0, None)
    with pytest.raises(UsageError, match="no pair of examples to compare among 1"):
        distances(examples[:1], near[:1, :1])


def test_the_order_of_examples_does_not_matter(generator, examples):
    shuffled = random.Random(0).sample(examples, len(examples))
    one, other = alike(generator, examples), alike(generator, shuffled)
    for kind, found in distances(examples, one).items():
        again = distances(shuffled, other)[kind]
        assert again.pairs == found.pairs
        assert [again.mean, again.std] == pytest.approx([found.mean, found.std], abs=1e-6)
    places = dict(zip(shuffled, prompt_map(other).points, strict=True))
    np.testing.assert_allclose([places[one] for one in examples], prompt_map(one).points, atol=1e-4)


def test_the_map_shows_principal_components():
    """Of points in three dimensions, by their scalar products; as the singular value decomposition has it."""
    points = np.random.default_rng(0).normal(size=(20, 3)) * [3, 1, 0.1]
    found = prompt_map(points @ points.T)
    centred = points - points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred)
    wanted = centred @ directions[:2].T
    np.testing.assert_allclose(np.abs(found.points), np.abs(wanted), atol=1e-9)
    assert found.shares == pytest.approx(tuple(sizes[:2] ** 2 / (sizes**2).sum()))
    assert all(max(axis) >= -min(axis) for axis in zip(*found.points, strict=True))
    assert prompt_map(np.ones((3, 3))).shares == pytest.approx((0, 0), abs=1e-9)


def test_a_report_of_prompts(generator, examples, tmp_path):
    page, told = write_prompts_report("mine", generator, examples, tmp_path / "r", {"commit": "c"}, 64)
    text = page.read_text()
    assert "mine: 20 prompts for 2 data sets. Those of one template lie 0." in told
    kept = json.loads((tmp_path / "r" / "prompts.json").read_text())
    same = kept["distances"][SAME_TEMPLATE]
    assert f"| {SAME_TEMPLATE} | {same['mean']:#.3g} | {same['std']:#.3g} | 40 |" in text
    assert kept["commit"] == "c"
    assert [(one["task"], one["template"], one["id"]) for one in kept["prompts"]] == [
        (one.task, one.template, one.id) for one in examples
    ]
    assert 0.5 < sum(kept["variance_shown"]) <= 1
    assert (tmp_path / "r" / "prompts.png").read_bytes().startswith(b"\x89PNG")


def test_what_generates_is_found_and_what_does_not_is_refused(lm, generator):
    assert generator_of(generator) is generator
    assert generator_of(Recursion(lm, RecursionShape(layers=1), generator)) is generator
    for scaffold in (Bare(), SoftPrompt(from_vocabulary(lm, 0)(3)), Recursion(lm, RecursionShape(layers=1))):
        with pytest.raises(UsageError, match=f"kind {scaffold.kind} generates no prompts: .* name an ID-PT scaffold"):
            generator_of(scaffold)


def test_the_frozen_model_as_its_own_encoder_generates_prompts_too(lm, examples):
    own = InputPrompt(lm, lm, InputPromptShape(length=2, encoder_length=3, head_width=8))
    found = distances(examples, alike(own, examples))
    assert found[SAME_TEMPLATE].mean > 0
