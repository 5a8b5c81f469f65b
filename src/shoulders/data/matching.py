"""Whether an answer stands in a passage, as DPR decides it, and where."""

from collections.abc import Callable, Iterator, Sequence
from typing import final
from unicodedata import combining, decimal, decomposition, normalize

import regex

from shoulders.errors import UsageError
from shoulders.records import Passage, Support

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

Rule = Callable[[Sequence[str], str], bool]  # whether one of the answers stands in a text
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")  # DPR's
ASCII_TOKEN = regex.compile(r"[a-z0-9]+|[!-~]")  # what PART finds in plain English, faster
SPACELESS = rf"{IDEOGRAPHIC}{SOUTH_EAST_ASIAN}"
LETTER = r"\p{L}\p{N}\p{M}"
PART = regex.compile(
    rf"[[{SPACELESS}]&&[\p{{L}}\p{{N}}]](?:{IGNORABLE}*[\p{{M}}\u30fc])*"
    rf"|[{KATAKANA}](?:{IGNORABLE}*[{KATAKANA}\p{{M}}])*"
    rf"|[[{LETTER}]--[{SPACELESS}{KATAKANA}]](?:{IGNORABLE}*[[{LETTER}]--[{SPACELESS}{KATAKANA}]])*"
    r"|(?![\p{Z}\p{C}])\X",
    regex.V1,
)
UNSEEN = regex.compile(IGNORABLE, regex.V1)
NEVER = -1


def answer_tokens(text: str) -> list[str]:
    """The tokens by which DPR looks for an answer."""
    return [token.lower() for token in TOKEN.findall(normalize("NFD", text))]


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether an answer stands in a passage's text by DPR's rule: its tokens in a row (its title does not count)."""
    tokens = answer_tokens(text)
    return any(True for answer in answers for _ in _places(answer_tokens(answer), tokens))


def has_span(answers: Sequence[str], text: str) -> bool:
    """Whether one of the answers stands in a passage's text by the project's rule (its title does not count)."""
    return any(True for _ in spans_of(answers, text))


def span_of(answer: str, text: str) -> tuple[int, int] | None:
    """Where an answer first stands in a text: its characters from, and up to; None if nowhere."""
    return next(spans_of([answer], text), None)


def spans_of(answers: Sequence[str], text: str) -> Iterator[tuple[int, int]]:
    """Where the answers stand in a text, one after the other: characters of the text as it is, from and up to."""
    folded = UNSEEN.sub("", _folded(text))
    wanted = {parts: None for answer in answers if (parts := _parts(answer)[0])}
    possible = [parts for parts in wanted if all(part in folded for part in parts)]
    parts, places = _parts(text) if possible else ((), [])
    for answer in possible:
        for first in _places(answer, parts):
            yield places[first][0], places[first + len(answer) - 1][1]


def word_places(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are, and its other signs, each alone: characters from, and up to."""
    return _parts(text)[1]


def has_match(patterns: Sequence[str], text: str) -> bool:
    """Whether one of some regular expressions matches in a passage's text: the answers of CuratedTREC.

    Raises:
        UsageError: one is no regular expression.
    """
    try:
        compiled = [regex.compile(normalize("NFD", one), regex.IGNORECASE | regex.MULTILINE) for one in patterns]
    except regex.error as error:
        raise UsageError(f"an answer is no regular expression ({error})") from error
    return any(pattern.search(normalize("NFD", text)) for pattern in compiled)


def first_with_answer(answers: Sequence[str], texts: Sequence[str], rule: Rule = has_span) -> int:
    """The number of the first passage that has an answer, from 0; NEVER if none has."""
    return next((number for number, text in enumerate(texts) if rule(answers, text)), NEVER)


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else normalize("NFD", text.translate(ANSWERS))


def _parts(text: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Words and signs, folded, and where each is in the text as it is."""
    folded = _folded(text)
    if text.isascii():
        found = list(ASCII_TOKEN.finditer(folded))
        return tuple(one[0] for one in found), [one.span() for one in found]
    # Marks are put in order among themselves only, and stand in one part: what is before and after them is not moved.
    origin = [number for number, letter in enumerate(text) for _ in ANSWERS[ord(letter)]]
    some = [
        (part, origin[one.start() : one.end()]) for one in PART.finditer(folded) if (part := UNSEEN.sub("", one[0]))
    ]
    return tuple(part for part, _ in some), [(min(place), max(place) + 1) for _, place in some]


def _places(part: Sequence[str], whole: Sequence[str]) -> Iterator[int]:
    """Where a part stands in a row in the whole."""
    size = len(part)
    starts = range(len(whole) - size + 1) if size else ()
    return (start for start in starts if whole[start : start + size] == part)


def support(answer: str, passages: Sequence[Passage]) -> Support | None:
    """The first passage whose text holds the answer, and where; None if there is none.

    Answers are looked for as recall does it (`matching.has_span`), titles do not count. An answer without a letter or
    sign stands nowhere.
    """
    for number, passage in enumerate(passages):
        if span := span_of(answer, passage.text):
            return Support(number, *span)
    return None


Span = tuple[int, int]  # first place and the one after the last
MOST = 10  # occurrences that are trained on


def answer_spans(answers: Sequence[str], text: str, most: int = MOST) -> list[Span]:
    """Where the answers stand in a text, in characters, from its beginning on.

    They are looked for as `has_span` does: a text that has an answer has a span.
    """
    return sorted(set(spans_of(answers, text)))[:most]
