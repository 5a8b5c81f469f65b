import pytest
import torch

from shoulders.engine.batches import EncodedQuestion, by_length, encode, question_batch, training_batch
from shoulders.engine.inference import Answering, answer, rank
from shoulders.errors import ContextFull, UsageError
from shoulders.records import IGNORE, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt


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
    rows = [EncodedQuestion(Question("x"), [0] * int(n), 0) for n in torch.randint(5, 300, (64,), generator=generator)]
    groups = list(by_length(rows, lambda row: row.length, 1024))
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    padded = sum(len(group) * max(row.length for row in group) for group in groups)
    assert all(len(group) * max(row.length for row in group) <= 1024 for group in groups)
    assert padded < 1.15 * sum(row.length for row in rows)
    assert [len(group) for group in by_length(rows, lambda row: row.length, 1)] == [1] * 64


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


def test_a_question_or_an_answer_of_nothing_is_refused(lm):
    with pytest.raises(UsageError, match="a question is empty"):
        answer([Question("Why?"), Question(" ")], lm, Bare(), Answering(longest=4))
    with pytest.raises(UsageError, match="length of the answer must be at least 1, got 0"):
        Answering(longest=0)
