import pytest

from shoulders.corpus.analyser import ENGLISH, Analyser
from shoulders.errors import UsageError

TERMS = Analyser().terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The cats are running", ["cat", "run"]),
        ("CAFÉ Zürich naïve Łódź", ["cafe", "zurich", "naiv", "łodz"]),
        ("Straße ﬁne ①", ["strass", "fine", "1"]),
        ("France's and FRANCE\u2019S", ["franc", "franc"]),
        ("3.14 C3PO x_y", ["3", "14", "c3po", "x", "y"]),
        ("東京 is in 日本", ["東", "京", "日", "本"]),
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


def test_plain_english_takes_a_short_cut_to_the_same_terms():
    text = "The U.S.'s 42nd -- President_s\tVISITED Paris, didn't he? naive"
    assert TERMS(f"{text} é")[:-1] == TERMS(text)


def test_another_analyser_is_refused_and_both_are_named():
    analyser = Analyser()
    analyser.check(analyser.identity, "x")
    with pytest.raises(UsageError, match=r"x was analysed by 'german' version 3.*'english' version 1"):
        analyser.check({"name": "german", "version": 3}, "x")
    settings = {**analyser.identity["settings"], "stems": "none"}
    with pytest.raises(UsageError, match=r"with other settings \(stems\)"):
        analyser.check({**analyser.identity, "settings": settings}, "x")
