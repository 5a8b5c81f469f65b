"""Characters that are written in more than one way, folded to one: for search, for equal passages and for answers."""

from collections.abc import Callable
from typing import final
from unicodedata import combining, decimal, decomposition, normalize

# Scripts without spaces between words: by the character, and those in which marks and several characters make a letter.
IDEOGRAPHIC = r"\p{Han}\p{Hiragana}\p{Bopomofo}\p{Yi}"
SOUTH_EAST_ASIAN = r"\p{LB=SA}"  # Thai, Lao, Khmer, Burmese and their neighbours: Unicode's UAX 14 calls them complex
KATAKANA = r"\p{Katakana}\u30fc\u3099\u309a"  # with the sign of a long vowel, and the marks of kana
IGNORABLE = r"[\p{Default_Ignorable_Code_Point}--\u200b]"  # soft hyphens, joiners; U+200B stands between words
CHANGES_MEANING = ("<super", "<sub", "<circle", "<fraction")  # more than another look: 10\u2076, 3\u00bd
SIGNS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u02b9\u02bb\u02bc\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u301d\u301e\u301f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58", "-"),
}


@final
class Folding(dict[int, str]):
    """What each character becomes, worked out when it is first met: a table for `str.translate`."""

    def __init__(self, fold: Callable[[str], str]) -> None:
        super().__init__()
        self._fold = fold

    def __missing__(self, code: int) -> str:
        folded = self[code] = self._fold(chr(code))
        return folded


def _look(character: str) -> str:
    """NFD, of what it is another look of; what it is made of may have looks of its own (one sign for m\u00b2)."""
    tag, _, codes = decomposition(character).rpartition("> ")
    if not codes or tag in CHANGES_MEANING:
        return normalize("NFD", character)
    return normalize("NFD", "".join(_look(chr(int(code, 16))) for code in codes.split()))


def _answer(character: str) -> str:
    signs = SIGNS.get(character) or "".join(SIGNS.get(one, one) for one in _look(character))
    digits = (one if (value := decimal(one, None)) is None else str(value) for one in signs)
    return normalize("NFD", "".join(one if combining(one) else one.casefold() for one in digits))


# Full width, ligatures, positional and typographic forms are decomposed.
LOOKS = Folding(_look)
# Case, the look of letters, decimal digits, quotation marks, apostrophes and dashes are folded; accents are not.
ANSWERS = Folding(_answer)
