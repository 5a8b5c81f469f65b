"""Examples of a mixture as token ids: what is discarded, truncated or skipped, and where a stream goes on."""

import pytest

from shoulders.data.mixture import Mixture
from shoulders.data.tasks import SkipPolicy, TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Lengths
from shoulders.errors import DataError, TemplateFailed
from shoulders.training.stream import Stream


def stream(lm, texts, jinja="{{t}} ||| {{a}}", **settings):
    template = Template("w", "id", jinja)
    task = TemplatedTask("a", "Toys", {"w": template}, {"train": [{"t": t, "a": a} for t, a in texts]})
    mixture = Mixture([task], split="train", seed=0, skip=settings.pop("skip", SkipPolicy()))
    return Stream(mixture, lm, **{"lengths": Lengths(), "prompt_length": 0, **settings})


def test_too_long_examples_are_discarded_or_truncated_and_counted(lm):
    """The paper, section 2.2: what does not fit T0++'s lengths is discarded, inputs are cut to the context."""
    texts = [("Why?", "so"), ("Name a planet. " * 30, "Mars"), ("What is this?", "bad " * 40)]
    lengths = Lengths(input=1000, target=30)
    found = stream(lm, texts, lengths=lengths, prompt_length=20)
    rows = found.take(4)
    assert found.counts["a"]["truncated"] >= 1
    assert found.counts["a"]["discarded"] >= 1
    assert max(len(row.ids) + len(row.target) for row in rows) == lm.context - 20
    strict = stream(lm, texts, lengths=Lengths(input=20, target=30))
    assert {row.question.text for row in strict.take(3)} == {"Why?"}


def test_a_stream_goes_on_where_it_was(lm):
    texts = [(f"{n}?", str(n)) for n in range(40)]
    whole = [row.question.text for row in stream(lm, texts).take(30)]
    first = stream(lm, texts)
    first.take(13)
    second = stream(lm, texts)
    second.position = first.position
    assert [row.question.text for row in second.take(17)] == whole[13:]


def test_a_mixture_of_nothing_usable_is_refused(lm):
    with pytest.raises(DataError, match="no example fits 2 input and 256 target tokens"):
        stream(lm, [("Name a planet.", "Mars")], lengths=Lengths(input=2)).take(1)


def test_failing_templates_stop_or_are_counted_as_such(lm):
    """What a template fails on is told apart from what it is not meant for."""
    texts = [(f"{n}?", str(n)) for n in range(6)]
    jinja = "{% if a != '0' %}{{ t if a in '123' else missing }} ||| {{a}}{% endif %}"
    with pytest.raises(TemplateFailed, match="'missing' is undefined"):
        stream(lm, texts, jinja).take(6)
    found = stream(lm, texts, jinja, skip=SkipPolicy(failing=True))
    assert {row.question.text for row in found.take(6)} == {"1?", "2?", "3?"}
    found.take(6 - found.position % 6)
    epochs = found.position // 6
    assert epochs >= 1
    assert found.counts["a"]["template failed"] >= 2 * epochs
    assert found.counts["a"]["not meant"] >= epochs
    assert found.counts["a"]["template failed"] + found.counts["a"]["not meant"] + 12 >= found.position


def test_where_every_template_fails_the_first_is_named(lm):
    found = stream(lm, [("a?", "1"), ("b?", "2")], "{{missing}} ||| x", skip=SkipPolicy(failing=True))
    with pytest.raises(DataError, match=r"template failed\); the first: template 'w' of task 'a' on example train:\d"):
        found.take(1)
