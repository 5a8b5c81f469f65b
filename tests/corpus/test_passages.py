from itertools import pairwise

import pytest

from shoulders.corpus.passages import Cutting, same_text
from shoulders.errors import UsageError

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


def test_a_passage_has_a_word():
    with pytest.raises(UsageError, match="passages of 0 words"):
        Cutting(words=0)


def test_what_copies_share():
    assert same_text("A b\n c") == same_text("a B C") == same_text("\uff21 b c")
    assert same_text("a b c") != same_text("a b d")
