import pytest
import torch

from rankers import ANSWERS, PASSAGES
from shoulders.data.matching import answer_spans, has_span
from shoulders.retrieval.scoring import best_span, token_spans, whole_words

TEXT = PASSAGES[0][1]


def test_every_occurrence_of_every_answer_is_found():
    found = [TEXT[first:last] for first, last in answer_spans(ANSWERS, TEXT)]
    assert found == ["Harald Fairhair", "Harald I", "Harald Fairhair"]


def test_no_more_than_ten_are_trained_on():
    assert len(answer_spans(["a"], "a " * 30)) == 10


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("café", "the Cafe\u0301 Royal", "Cafe\u0301"),
        ("cafe\u0301", "the CAFÉ Royal", "CAFÉ"),
        ("U.S.", "in the u.s. army", "u.s."),
        ("1 , 000", "about 1,000 men", "1,000"),
        ("가", "서울 가 나", "가"),
        ("art", "a party", None),
        ("", "anything", None),
        ("\x00\u200b", "anything", None),
        ("x", "", None),
        ("ṩ", "the s\u0307\u0323 sign", "s\u0307\u0323"),  # marks in another order than the normal one
    ],
)
def test_answers_are_looked_for_as_recall_counts_them(answer, text, found):
    spans = answer_spans([answer], text)
    assert bool(spans) == has_span([answer], text)
    assert [text[first:last] for first, last in spans] == ([found] if found else [])


def test_tokens_of_characters():
    offsets = [(0, 6), (7, 11), (11, 15), (16, 18)]
    assert token_spans([(0, 15), (7, 11), (16, 18)], offsets) == [(0, 3), (1, 2), (3, 4)]


def test_an_answer_beyond_the_cut_has_no_tokens():
    assert token_spans([(0, 9), (20, 22)], [(0, 6), (7, 8)]) == []


def test_the_best_span_ends_after_its_beginning_and_is_short():
    start, end = torch.zeros(30), torch.zeros(30)
    end[2], start[5], end[14], end[15] = 9.0, 8.0, 2.0, 3.0  # the best end is before the best start
    assert best_span(start, end) == (5, 15)
    assert best_span(start, end, longest=11) == (5, 16)


def test_spans_grow_to_whole_words():
    text = "in Fairhair's day"
    assert whole_words((7, 9), text) == (3, 11)
    assert whole_words((3, 11), text) == (3, 11)
    assert whole_words((0, 2), text) == (0, 2)
    assert whole_words((4, 5), "首都は北京です") == (4, 5)  # no words to grow to
    assert whole_words((0, 1), "น้ำ") == (0, 3)
    assert whole_words((2, 3), "a 👩\u200d🚀") == (2, 5)
    assert whole_words((2, 3), "a  b") == (2, 3)
