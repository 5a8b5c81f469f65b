from unicodedata import normalize

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from shoulders.errors import UsageError
from shoulders.retrieval.bm25 import ENGLISH, Analyser

TERMS = Analyser().terms
SCRIPTS = ["กขคงเมืองหลวงน้ำ", "ກຂຄງເມືອງນ້ຳ", "កខគភ្នំពេញ", "ကခဂမြန်မာ", "かがカガきシジらラーん", "北京東日"]
KANA = SCRIPTS[-2]


def written(script):
    """One to eight characters of a script, each with its marks, composed or not."""
    letters = st.lists(st.sampled_from(regex.findall(r"\p{L}[\p{M}\u0e33\u0eb3]*", script)), min_size=1, max_size=8)
    return st.builds(normalize, st.sampled_from(["NFC", "NFD"]), letters.map("".join))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The cats are running", ["cat", "run"]),
        ("CAFÉ Zürich naïve Łódź", ["cafe", "zurich", "naiv", "lodz"]),
        ("Straße ﬁne ①", ["strass", "fine", "1"]),
        ("France's and FRANCE\u2019S", ["franc", "franc"]),
        ("3.14 C3PO x_y", ["3", "14", "c3po", "x", "y"]),
        ("東京 is in 日本", ["東", "京", "東京", "日", "本", "日本"]),
        ("か\u3099Python がPython", ["が", "python", "が", "python"]),
        ("か\u309aPython", ["か\u309a", "python"]),  # no character of Unicode has both
        ("ｶﾞ ガ", ["ガ", "ガ"]),
        ("น้ำ", ["น้\u0e4d", "า", "น้\u0e4dา"]),
        ("ក\u200bខ", ["ក", "ខ"]),
        (
            "Øl, Đà Nẵng, Hawai\u02bbi, \u0131stanbul, Æsir, Ħal",
            ["ol", "da", "nang", "hawaii", "istanbul", "aesir", "hal"],
        ),
        ("مُحَمَّد محـــمد مدرسة", ["محمد", "محمد", "مدرسه"]),
        ("שָׁלוֹם", ["שלום"]),
        ("١٩٨٤ १२", ["1984", "12"]),
        ("a\u2013b \u201cquoted\u201d", ["b", "quot"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("soft\u00adware", ["softwar"]),
        ("US s us as", ["us", "s", "us"]),
        ("... !? \x00", []),
        (ENGLISH, []),
    ],
)
def test_terms(text, terms):
    assert TERMS(text) == terms


def test_composed_and_decomposed_text_are_the_same():
    assert TERMS("café Ångström") == TERMS("cafe\u0301 A\u030angstro\u0308m")


@given(st.text(st.characters() | st.sampled_from("\u0301\u0323\u0345\u3099\u309a\u0e33が각ẤøŁİßﬁ\u0661")))
def test_composition_does_not_matter_and_a_term_is_one_word(text):
    terms = TERMS(text)
    assert terms == TERMS(normalize("NFC", text)) == TERMS(normalize("NFD", text))
    assert " ".join(terms).split() == terms


@given(st.sampled_from(SCRIPTS).flatmap(lambda script: st.tuples(*3 * [written(script)])))
def test_a_word_is_found_where_no_space_is_around_it(parts):
    before, word, after = parts
    assert set(TERMS(word)) <= set(TERMS(before + word + after))


@given(written(KANA), written(KANA + "\uff9e"))
def test_kana_do_not_stick_to_the_word_beside_them(before, after):
    assert "python" in TERMS(f"{before}Python{after}")
    assert TERMS(before) == TERMS(f"{before}Python")[:-1]


@given(st.text("abcø9", min_size=3), st.sampled_from("\u0301\u00ad\u200d\ufe0f\u0640\u02bb"), st.integers(1))
def test_marks_and_joiners_change_no_term(word, mark, at):
    at = at % len(word) or 1
    assert TERMS(word[:at] + mark + word[at:]) == TERMS(word)


def test_plain_english_takes_a_short_cut_to_the_same_terms():
    text = "The U.S.'s 42nd -- President_s\tVISITED Paris, didn't he? naive"
    assert TERMS(f"{text} é")[:-1] == TERMS(text)


def test_another_analyser_is_refused_and_both_are_named():
    analyser = Analyser()
    analyser.check(analyser.identity, "x")
    with pytest.raises(UsageError, match=r"x was analysed by 'german' version 3.*'english' version 2"):
        analyser.check({"name": "german", "version": 3}, "x")
    settings = {**analyser.identity["settings"], "stems": "none"}
    with pytest.raises(UsageError, match=r"with other settings \(stems\)"):
        analyser.check({**analyser.identity, "settings": settings}, "x")
