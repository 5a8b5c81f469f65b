"""The context is filled to the last token and never beyond it."""

from dataclasses import replace

import pytest

from shoulders.engine.batches import encode
from shoulders.engine.inference import Answering, answer
from shoulders.errors import ContextFull, UsageError
from shoulders.evidence.packing import Packer
from shoulders.records import Passage, Question
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

QUESTION = Question("Question: Who is proud of Oslo?\nAnswer:")
PASSAGES = [
    Passage(f"{city} is a capital, and people are proud of it.", -number, f"About {city}")
    for number, city in enumerate(("Oslo", "Rome", "Addis Ababa", "Bern"))
]


def written(passages):
    return "".join(f"{one.title}\n{one.text}\n\n" for one in passages) + QUESTION.text


def size(lm, passages):
    return len(lm.ids(written(passages)))


@pytest.mark.parametrize("count", range(1, 5))
def test_what_fits_exactly_is_read_and_with_one_token_less_it_is_not(lm, count):
    exact = size(lm, PASSAGES[:count])
    full = Packer(lm, exact).pack(QUESTION, PASSAGES)
    assert full.question.whole == written(PASSAGES[:count])
    assert full.passages == tuple(PASSAGES[:count])
    assert len(encode(full.question, lm).ids) == exact
    less = Packer(lm, exact - 1).pack(QUESTION, PASSAGES)
    assert less.passages == tuple(PASSAGES[: count - 1])
    assert less.question.whole == written(PASSAGES[: count - 1])


@pytest.mark.parametrize("room", range(30, 700, 31))
def test_no_passage_more_would_fit(lm, room):
    """As one by one, whatever the room: what is known to fit without counting the whole changes nothing."""
    many = PASSAGES * 5
    fitting = [count for count in range(1, len(many) + 1) if size(lm, many[:count]) <= room]
    packed = Packer(lm, room).pack(QUESTION, many)
    assert packed.passages == tuple(many[: max(fitting, default=0)])
    assert packed.question.whole == written(packed.passages)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("room", [3, 25, 60, 100, 1000])
def test_what_was_tokenised_to_pack_is_not_tokenised_again(lm, monkeypatch, room, truncate):
    packed = Packer(lm, room, truncate=truncate).pack(QUESTION, [*PASSAGES, Passage("word " * 500, 0.0)]).question
    fresh = encode(Question(packed.text, packed.evidence), lm, "Oslo")
    assert packed.ids == tuple(fresh.ids)
    counted = []
    ids = lm.ids
    monkeypatch.setattr(lm, "ids", lambda text: counted.append(text) or ids(text))
    assert encode(packed, lm, "Oslo").target == fresh.target
    assert packed.whole not in counted
    changed = replace(packed, text=f"{packed.text} not")  # another text has other tokens
    assert (changed.ids, encode(changed, lm).ids) == (None, ids(changed.whole))


def test_titles_are_counted(lm):
    plain = Passage(PASSAGES[0].text, 0.0)
    exact = len(lm.ids(f"{plain.text}\n\n{QUESTION.text}"))
    assert Packer(lm, exact).pack(QUESTION, [plain]).question.whole == f"{plain.text}\n\n{QUESTION.text}"
    assert not Packer(lm, exact).pack(QUESTION, PASSAGES[:1]).passages


def test_a_shorter_passage_that_is_trusted_less_is_not_tried(lm):
    short = Passage("So.", -9.0)
    packed = Packer(lm, size(lm, PASSAGES[:1]) + 10).pack(QUESTION, [*PASSAGES[:2], short])
    assert packed.passages == (PASSAGES[0],)
    assert packed.too_long == 0


def test_a_passage_longer_than_the_context_is_passed_over_and_counted(lm):
    endless = Passage("word " * 500, 1.0, "Endless")
    packed = Packer(lm, size(lm, PASSAGES[:2])).pack(QUESTION, [endless, PASSAGES[0], endless, *PASSAGES[1:]])
    assert packed.passages == tuple(PASSAGES[:2])
    assert packed.too_long == 2
    alone = Packer(lm, size(lm, [])).pack(QUESTION, PASSAGES)
    assert alone.question == QUESTION
    assert (alone.passages, alone.too_long) == ((), len(PASSAGES))


def test_a_question_that_is_too_long_itself_is_left_as_it_is(lm):
    assert Packer(lm, 3).pack(QUESTION, PASSAGES).question == QUESTION
    assert Packer(lm, 3, truncate=True).pack(QUESTION, PASSAGES).question == QUESTION
    assert Packer(lm, 100).pack(QUESTION, []).question == QUESTION


def test_text_before_the_question_stays_between_it_and_the_passages(lm):
    asked = Question(QUESTION.text, "Given. ")
    packed = Packer(lm, 110).pack(asked, PASSAGES)
    assert packed.passages
    assert packed.question.whole.endswith(f"\n\nGiven. {QUESTION.text}")
    assert len(lm.ids(packed.question.whole)) <= 110


@pytest.mark.parametrize("room", range(40, 130, 7))
def test_a_passage_is_cut_only_where_that_is_asked_for(lm, room):
    whole, cut = (Packer(lm, room, truncate=truncate).pack(QUESTION, PASSAGES) for truncate in (False, True))
    assert cut.passages[: len(whole.passages)] == whole.passages
    assert all(one in PASSAGES for one in whole.passages)
    assert len(lm.ids(cut.question.whole)) <= room
    for one in cut.passages[len(whole.passages) :]:
        original = PASSAGES[len(whole.passages)]
        assert one.title == original.title
        assert original.text.startswith(one.text)
        longer = original.text[: original.text.find(" ", len(one.text) + 1)]
        assert size(lm, [*whole.passages, Passage(longer, 0.0, one.title)]) > room  # not one word more
    assert len(cut.passages) - len(whole.passages) in (0, 1)


def test_prompt_and_answer_have_room_beside_what_is_packed(any_lm):
    """In models of a limited context and of none."""
    packer = Packer.for_context(any_lm, 5, 20, 200)
    assert packer.room == min(200, any_lm.context - 25)
    packed = packer.pack(QUESTION, PASSAGES * 3)
    used = len(any_lm.ids(packed.question.whole))
    assert used <= packer.room
    assert used + size(any_lm, PASSAGES[2:3]) > packer.room  # not even for the longest of them
    assert Packer.for_context(any_lm, 5, 20, 60).room == 60


def test_a_full_context_is_read(lm):
    packed = Packer.for_context(lm, 5, 20, lm.context).pack(QUESTION, PASSAGES)
    assert packed.passages
    prompt = SoftPrompt(from_vocabulary(lm, 0)(5))
    assert len(answer([packed.question], lm, prompt, Answering(20))) == 1
    with pytest.raises(ContextFull):
        answer([Packer.for_context(lm, 0, 0, lm.context, truncate=True).pack(QUESTION, PASSAGES).question], lm, prompt)


def test_a_context_without_room_is_refused(lm):
    with pytest.raises(ContextFull, match=r"prompt of 100 vectors, an answer of 28 tokens.*scaffold\.length"):
        Packer.for_context(lm, 100, 28, 512)
    with pytest.raises(UsageError, match="must be at least 1 token, got 0"):
        Packer(lm, 0)
