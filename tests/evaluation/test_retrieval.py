from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoulders.data.matching import NOT_FOUND, first_with_answer, has_answer, has_match, has_span, span_of, spans_of
from shoulders.errors import UsageError
from shoulders.evaluation.recall import recall_at


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
    with pytest.raises(UsageError, match="is not a regular expression"):
        has_match(["("], "x")


def test_recall():
    texts = ["nothing", "Rome it is", "Rome again"]
    first = [first_with_answer([answer], texts) for answer in ("Rome", "nothing", "Oslo")]
    assert first == [1, 0, NOT_FOUND]
    assert [recall_at(first, k) for k in (1, 2, 100)] == pytest.approx([100 / 3, 200 / 3, 200 / 3])
    for wrong in ([], 1), (first, 0):
        with pytest.raises(UsageError, match="must be at least 1"):
            recall_at(*wrong)


@pytest.mark.parametrize(
    ("answer", "text", "span"),
    [
        ("Rome", "In Rome, Rome", "Rome"),
        ("paris france", "He left PARIS\u00a0France.", "PARIS\u00a0France"),
        ("Beyonce\u0301", "Then Beyoncé sang", "Beyoncé"),
        ("Beyoncé", "é è Then Beyonce\u0301 sang", "Beyonce\u0301"),
        ("q\u0323\u0307", "a q\u0307\u0323 b", "q\u0307\u0323"),  # marks in another order are the same text
        ("=", "a \u2260 b", None),  # as e is not \u00e9
        ("a=b", "if a=b.", "a=b"),
        ("서울", "수도는 서울 이다", "서울"),
        ("$12", "nearly $12.", "$12"),
        ("Bob", "Bobby", None),
        ("", "Bobby", None),
        ("\u200d\ufe0f", "a \u200d\ufe0f b", None),
        ("x", "", None),
        ("北京", "中国的首都是北京。", "北京"),
        ("東京", "日本の首都は東\n京です", "東\n京"),  # a line's end is in no word
        ("カラス", "庭でｶﾗｽが鳴く", "ｶﾗｽ"),
        ("ラス", "庭でカラスが鳴く", None),
        ("か", "がいる", None),
        ("เมืองหลวง", "กรุงเทพเป็นเมืองหลวงของไทย", "เมืองหลวง"),
        ("ភ្នំពេញ", "រាជធានី\u200bភ្នំពេញ\u200bជា", "ភ្នំពេញ"),
        ("Python", "会社でPythonを使う", "Python"),
        ("Ocean's Eleven", "in Ocean\u2019s Eleven", "Ocean\u2019s Eleven"),
        ("Hawai'i", "on Hawai\u02bbi.", "Hawai\u02bbi"),
        ('the "Titanic"', "aboard the \u201cTitanic\u201d.", "the \u201cTitanic\u201d"),
        ("twenty-one", "aged twenty\u2011one", "twenty\u2011one"),
        ("1914-1918", "in 1914\u20131918", "1914\u20131918"),
        ("fire station", "the \ufb01re station", "\ufb01re station"),
        ("official", "o\ufb03cial", "o\ufb03cial"),
        ("1984", "in \uff11\uff19\uff18\uff14", "\uff11\uff19\uff18\uff14"),
        ("1984", "\u0661\u0669\u0668\u0664 م", "\u0661\u0669\u0668\u0664"),
        ("Goethestrasse", "in der GOETHESTRA\u00dfE 1", "GOETHESTRA\u00dfE"),
        ("software", "some soft\u00adware", "soft\u00adware"),
        ("\u2764", "I \u2764\ufe0f it", "\u2764\ufe0f"),
        ("\U0001f469", "\U0001f469\u200d\U0001f680", None),
        ("\U0001f1e9\U0001f1ea", "\U0001f1ee\U0001f1e9\U0001f1ea\U0001f1f8", None),  # in Indonesia's and Spain's flags
        ("106", "10\u2076 cells", None),
        ("10", "10\u2076 cells", None),
        ("resume", "a r\u00e9sum\u00e9", None),
    ],
)
def test_where_an_answer_stands(answer, text, span):
    """In the characters of the text as it is, whatever its letters are made of."""
    found = span_of(answer, text)
    assert (found and text[found[0] : found[1]]) == span
    assert has_span(["not there at all", answer], text) is (found is not None)
    if answer == "Rome":
        assert found == (3, 7)


LOOKS = {"'": "\u2019\u02bc\u2018\uff07", '"': "\u201c\u201d\u00ab\u301d", "-": "\u2010\u2011\u2013\u2212"}
LOOKS |= {one: chr(ord(one) + 0xFEE0) for one in "0123456789abcdefghij"}
LOOKS |= {"ss": "\u00df\u1e9e", "fi": "\ufb01", "ffi": "\ufb03", "é": "É", " ": "\u00a0\u3000\n"}
PARTS = [*LOOKS, "x", "北", "京", "が", "น้ำ", "ក្រ", "한", "☺", "👩\u200d🚀", "🇩🇪", "q\u0323\u0307"]


@st.composite
def answers(draw):
    """An answer, and the same in another look."""
    parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6))
    other = [draw(st.sampled_from([part, *LOOKS.get(part, part.upper())])) if part in LOOKS else part for part in parts]
    form = draw(st.sampled_from(["NFC", "NFD"]))
    return "".join(parts), normalize(form, "".join(other))


@given(st.text(), answers(), st.text())
def test_an_answer_is_found_at_its_place_however_it_is_written(before, pair, after):
    answer, written = pair
    text = f"{before} {written} {after}"
    stripped = written.strip()
    start = text.index(stripped, len(before) + 1)
    assert not stripped or (start, start + len(stripped)) in spans_of([answer], text)


@given(st.text("aé ß.,'\u2019-10北京アー가☺\n"), st.text("aé ß.,'\u2019-10北京アー가☺\n"))
def test_what_stands_there_by_dprs_rule_does_so_by_ours(answer, text):
    assert has_span([answer], text) or not has_answer([answer], text)
