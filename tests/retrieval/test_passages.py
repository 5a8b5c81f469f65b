import time
from itertools import pairwise
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoulders.errors import UsageError
from shoulders.retrieval.passages import Cutting, text_key

LONG = " ".join(f"w{number}" for number in range(1, 251))


def test_disjoint_blocks_as_dpr():
    passages = list(Cutting().cut(f"\n {LONG.replace(' ', chr(10) + ' ')}  "))
    assert [len(passage.split()) for passage in passages] == [100, 100, 50]
    assert " ".join(passages) == LONG


@pytest.mark.parametrize("text", ["", " \n ", "\t"])
def test_no_text_gives_no_passage(text):
    assert list(Cutting().cut(text)) == []
    assert list(Cutting(sentences=True).cut(text)) == []


def test_sentences_stay_whole():
    sentences = [f"Sentence {number} has {'very ' * number}many words." for number in range(60)]
    passages = list(Cutting(sentences=True).cut(" ".join(sentences)))
    assert " ".join(passages) == " ".join(" ".join(sentences).split())
    assert all(len(passage.split()) <= 100 and passage.endswith("words.") for passage in passages)
    assert all(len(a.split()) + len(b.split(".")[0].split()) > 100 for a, b in pairwise(passages))  # as full as can be


def test_only_a_sentence_that_is_too_long_is_broken():
    text = f"One before. The {LONG}. One after it."
    assert list(Cutting(sentences=True).cut(text)) == [
        "One before.",
        *Cutting().cut(f"The {LONG}."),
        "One after it.",
    ]


def test_what_ends_no_sentence():
    cutting = Cutting(words=4, sentences=True)
    assert list(cutting.cut("I saw Dr. Smith. He is e.g. here now.")) == ["I saw Dr. Smith.", "He is e.g. here", "now."]
    assert list(cutting.cut('He said "Go!" She went.')) == ['He said "Go!"', "She went."]
    assert list(cutting.cut("A heading\n\nSome more words")) == ["A heading", "Some more words"]


def test_scripts_without_spaces_do_not_make_one_endless_word():
    chinese = "北京是中国的首都。" * 40
    passages = list(Cutting().cut(chinese))
    assert "".join(passages) == chinese
    assert max(map(len, passages)) < 130
    assert max(map(len, Cutting().cut("x" * 500_000))) < 101_000


@pytest.mark.parametrize(
    "text", ["เมืองหลวงของประเทศไทย", "ນະຄອນຫຼວງຂອງປະເທດລາວ", "រាជធានីនៃប្រទេសកម្ពុជា", "မြန်မာနိုင်ငံ၏မြို့တော်"]
)
def test_passages_of_south_east_asia_are_as_long_as_english_ones(text):
    passages = list(Cutting().cut(text * 200))
    assert "".join(passages) == text * 200
    assert all(300 < len(passage) < 900 for passage in passages[:-1])  # 100 English words are some 600 characters


@given(st.text(), st.integers(1, 9), st.booleans())
def test_all_of_a_text_is_in_its_passages(text, words, sentences):
    passages = Cutting(words, sentences).cut(text.replace("\u200b", ""))
    assert "".join("".join(passages).split()) == "".join(text.replace("\u200b", "").split())


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (3, ["नमस्ते।", "आप कैसे हैं?"]),
        (1, ["مرحبا؟", "نعم."]),
        (5, ["はい。", "「いいえ。」", "そう。"]),
        (3, ["It ended (late?)", "He left.", "3.5 is one"]),
        (3, ["A line\nends.", "\ud800 Here is\n \n", "New"]),
    ],
)
def test_where_sentences_end(words, sentences):
    for text in (" ".join(sentences), " ".join(sentences).replace("\n", "\r\n")):
        passages = [" ".join(sentence.split()) for sentence in sentences]
        assert list(Cutting(words, sentences=True).cut(text)) == passages


def test_a_passage_has_a_word():
    with pytest.raises(UsageError, match="words of a passage must be at least 1, got 0"):
        Cutting(words=0)


def test_what_copies_share():
    assert text_key("A b\n c") == text_key("a B C") == text_key("\uff21 b c")
    assert text_key("a b c") != text_key("a b d")
    assert text_key("\uff76\uff9e") == text_key("\u30ac")
    assert text_key("e\u0301") == text_key("\u00c9")
    assert text_key("5 \u33a1") == text_key("5 m\u00b2")


@given(st.text(), st.integers(0, 9))
def test_what_is_equal_means_the_same(text, digit):
    assert text_key(text) == text_key(normalize("NFC", text)) == text_key(normalize("NFD", text))
    raised, cast_to_compute, circled = (
        "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[digit],
        chr(0x2080 + digit),
        "\u2460",
    )
    assert len({text_key(f"{text}10{one}") for one in (str(digit), raised, cast_to_compute, circled)}) == 4


def test_very_many_blank_lines_are_cut_in_no_time():
    begun = time.process_time()
    assert list(Cutting(sentences=True).cut("A b." + "\n" * 100_000 + "C.")) == ["A b. C."]
    assert time.process_time() - begun < 5
