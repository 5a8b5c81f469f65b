import pytest
import torch

from shoulders.data.mixture import Mixture
from shoulders.data.tasks import Skip, TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Encoded, Lengths, Stream, by_length, encode, question_batch, training_batch
from shoulders.engine.inference import Answering, answer, rank
from shoulders.errors import ContextFull, DataError, TemplateFailed, UsageError
from shoulders.records import IGNORE, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt


def stream(lm, texts, jinja="{{t}} ||| {{a}}", **settings):
    template = Template("w", "id", jinja)
    task = TemplatedTask("a", "Toys", {"w": template}, {"train": [{"t": t, "a": a} for t, a in texts]})
    mixture = Mixture([task], split="train", seed=0, skip=settings.pop("skip", Skip()))
    return Stream(mixture, lm, **{"lengths": Lengths(), "prompt_length": 0, **settings})


def test_labels_are_the_next_tokens_of_the_answer_and_its_end(lm):
    row = encode(Question("Name a planet."), lm, "Mars")
    batch = training_batch([row], lm, Bare())
    labels = batch.labels[0]
    scored = labels != IGNORE
    assert labels[scored].tolist() == [*lm.continuation_ids("Name a planet.", "Mars"), lm.end]
    assert scored.nonzero()[0].item() == len(row.ids) - 1


@pytest.mark.parametrize("placement", ["infix", "suffix"])
def test_rows_are_aligned_at_the_slot(lm, placement):
    prompt = SoftPrompt(torch.zeros(2, lm.width), placement)
    rows = [encode(Question("Why?", "Because. "), lm, "So"), encode(Question("Is this good or bad?", ""), lm, "bad")]
    batch = training_batch(rows, lm, prompt)
    assert len(set(batch.given.slot)) == 1
    assert batch.given.slot[0] == max(row.slot(prompt.placement) for row in rows)


def test_questions_end_in_one_column(lm):
    rows = [encode(Question(text), lm) for text in ("Why?", "Is this good or bad?")]
    given = question_batch(rows, lm, SoftPrompt(torch.zeros(2, lm.width)))
    assert given.mask[:, -1].all()
    assert given.slot == (int((~given.mask[0]).sum()), 0)
    assert question_batch(rows[:1], lm, Bare()).mask is None


def test_nothing_is_lost_and_little_is_padding():
    generator = torch.Generator().manual_seed(1)
    rows = [Encoded(Question("x"), [0] * int(n), 0) for n in torch.randint(5, 300, (64,), generator=generator)]
    groups = list(by_length(rows, lambda row: row.length, 1024))
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    padded = sum(len(group) * max(row.length for row in group) for group in groups)
    assert all(len(group) * max(row.length for row in group) <= 1024 for group in groups)
    assert padded < 1.15 * sum(row.length for row in rows)
    assert [len(group) for group in by_length(rows, lambda row: row.length, 1)] == [1] * 64


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
    second = stream(lm, texts, position=first.position)
    assert [row.question.text for row in second.take(17)] == whole[13:]


def test_a_mixture_of_nothing_usable_is_refused(lm):
    with pytest.raises(DataError, match="no example fits 2 input and 256 target tokens"):
        stream(lm, [("Name a planet.", "Mars")], lengths=Lengths(input=2)).take(1)


def test_questions_that_do_not_fit_are_refused_with_both_numbers_or_cut(lm):
    long = Question("Name a planet. " * 60)
    with pytest.raises(ContextFull, match=r"needs \d+ positions, the model has room for 128: .*allow truncation"):
        answer([long], lm, Bare(), Answering(longest=4))
    assert len(answer([long], lm, Bare(), Answering(longest=4, truncate=True))) == 1
    with pytest.raises(ContextFull, match=r"room for 128: ask for a shorter answer"):
        answer([long], lm, Bare(), Answering(longest=128, truncate=True))
    with pytest.raises(ContextFull):
        rank([long], [["a", "b"]], lm, Bare())
    with pytest.raises(ContextFull):
        answer([Question("Why?")], lm, SoftPrompt(torch.zeros(126, lm.width)), Answering(longest=4, truncate=True))


def test_failing_templates_stop_or_are_counted_as_such(lm):
    """What a template fails on is told apart from what it is not meant for."""
    texts = [(f"{n}?", str(n)) for n in range(6)]
    jinja = "{% if a != '0' %}{{ t if a in '123' else missing }} ||| {{a}}{% endif %}"
    with pytest.raises(TemplateFailed, match="'missing' is undefined"):
        stream(lm, texts, jinja).take(6)
    found = stream(lm, texts, jinja, skip=Skip(failing=True))
    assert {row.question.text for row in found.take(6)} == {"1?", "2?", "3?"}
    found.take(6 - found.position % 6)
    epochs = found.position // 6
    assert epochs >= 1
    assert found.counts["a"]["template failed"] >= 2 * epochs
    assert found.counts["a"]["not meant"] >= epochs
    assert found.counts["a"]["template failed"] + found.counts["a"]["not meant"] + 12 >= found.position


def test_where_every_template_fails_the_first_is_named(lm):
    found = stream(lm, [("a?", "1"), ("b?", "2")], "{{missing}} ||| x", skip=Skip(failing=True))
    with pytest.raises(DataError, match=r"template failed\); the first: template 'w' of task 'a' on example train:\d"):
        found.take(1)


def test_a_question_or_an_answer_of_nothing_is_refused(lm):
    with pytest.raises(UsageError, match="a question is empty"):
        answer([Question("Why?"), Question(" ")], lm, Bare(), Answering(longest=4))
    with pytest.raises(UsageError, match="at most 0 tokens"):
        Answering(longest=0)
