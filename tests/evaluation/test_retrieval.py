import pytest

from shoulders.data.matching import NEVER, first_with_answer, has_answer, has_match, span_of
from shoulders.errors import UsageError
from shoulders.evaluation.retrieval import recall_at


@pytest.mark.parametrize(
    ("answer", "text", "there"),
    [
        ("Bob Russell", "written by bob RUSSELL in 1969", True),
        ("Bob Russell", "Bob and Russell", False),
        ("Russell", "Russellville", False),
        ("14 December 1972", "on 14\u00a0December 1972.", True),
        ("14 December 1972", "December 14, 1972", False),
        ("U.S.", "the U.S. army", True),
        ("U.S.", "the US army", False),
        ("$12", "nearly $12 a barrel", True),
        ("Beyoncé", "Beyonce\u0301 sang", True),
        ("Beyoncé", "Beyonce sang", False),
        ("one", "none, one-off", True),
        ("", "anything", False),
        ("a b", "a", False),
        ("the end", "the\x00end", True),
    ],
)
def test_has_answer(answer, text, there):
    assert has_answer(["not there at all", answer], text) is there


def test_curated_trec():
    assert has_match([r"Sept(ember)?\s+\d+"], "on september  11")
    assert not has_match([r"^\d+$"], "a 5")
    with pytest.raises(UsageError, match="is no regular expression"):
        has_match(["("], "x")


def test_recall():
    texts = ["nothing", "Rome it is", "Rome again"]
    first = [first_with_answer([answer], texts) for answer in ("Rome", "nothing", "Oslo")]
    assert first == [1, 0, NEVER]
    assert [recall_at(first, k) for k in (1, 2, 100)] == pytest.approx([100 / 3, 200 / 3, 200 / 3])
    for wrong in ([], 1), (first, 0):
        with pytest.raises(UsageError, match="1 at least"):
            recall_at(*wrong)


@pytest.mark.parametrize(
    ("answer", "text", "span"),
    [
        ("Rome", "In Rome, Rome", "Rome"),
        ("paris france", "He left PARIS\u00a0France.", "PARIS\u00a0France"),
        ("Beyonce\u0301", "Then Beyoncé sang", "Beyoncé"),
        ("Beyoncé", "é è Then Beyonce\u0301 sang", "Beyonce\u0301"),
        ("q\u0323\u0307", "a q\u0307\u0323 b", "q\u0307\u0323"),  # marks in another order are the same text
        ("=", "a \u2260 b", "\u2260"),  # half of a letter is not marked
        ("서울", "수도는 서울 이다", "서울"),
        ("$12", "nearly $12.", "$12"),
        ("Bob", "Bobby", None),
        ("", "Bobby", None),
        ("x", "", None),
    ],
)
def test_where_an_answer_stands(answer, text, span):
    """In the characters of the text as it is, whatever its letters are made of."""
    found = span_of(answer, text)
    assert (found and text[found[0] : found[1]]) == span
    assert has_answer([answer], text) is (found is not None)
    if answer == "Rome":
        assert found == (3, 7)
