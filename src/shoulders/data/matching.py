"""Search for answers in passages, by DPR's rule (`has_answer`) and by the project's (`has_span`)."""

from collections.abc import Callable, Iterator, Sequence
from typing import final
from unicodedata import combining, decimal, decomposition, normalize

import regex

from shoulders.errors import UsageError
from shoulders.records import Passage, Support

# Scripts without spaces between words: by character, and those whose letters consist of marks and several characters.
IDEOGRAPHIC = r"\p{Han}\p{Hiragana}\p{Bopomofo}\p{Yi}"
SOUTH_EAST_ASIAN = r"\p{LB=SA}"  # Thai, Lao, Khmer, Burmese and others, which Unicode's UAX 14 calls complex
KATAKANA = r"\p{Katakana}\u30fc\u3099\u309a"  # with the mark of a long vowel, and the voicing marks of kana
IGNORABLE = (
    r"[\p{Default_Ignorable_Code_Point}--\u200b]"  # soft hyphens, joiners; but not U+200B, which separates words
)
CHANGES_MEANING = (
    "<super",
    "<sub",
    "<circle",
    "<fraction",
)  # compatibility forms with another meaning: 10\u2076, 3\u00bd
SIGNS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u02b9\u02bb\u02bc\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u301d\u301e\u301f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58", "-"),
}


@final
class Folding(dict[int, str]):
    """A table for `str.translate` that computes the replacement of a character when it is first looked up."""

    def __init__(self, fold: Callable[[str], str]) -> None:
        super().__init__()
        self._fold = fold

    def __missing__(self, code: int) -> str:
        folded = self[code] = self._fold(chr(code))
        return folded


def _plain_form(character: str) -> str:
    """Return the compatibility decomposition of a character, except those that change its meaning."""
    tag, _, codes = decomposition(character).rpartition("> ")
    if not codes or tag in CHANGES_MEANING:
        return normalize("NFD", character)
    return normalize("NFD", "".join(_plain_form(chr(int(code, 16))) for code in codes.split()))


def _folded_character(character: str) -> str:
    """Return a character with case, typography and digits folded."""
    signs = SIGNS.get(character) or "".join(SIGNS.get(one, one) for one in _plain_form(character))
    digits = (one if (value := decimal(one, None)) is None else str(value) for one in signs)
    return normalize("NFD", "".join(one if combining(one) else one.casefold() for one in digits))


# Decomposes full width characters, ligatures, positional and typographic forms.
LOOKS = Folding(_plain_form)
# Folds case, typographic forms, decimal digits, quotation marks, apostrophes and dashes, but not accents.
ANSWERS = Folding(_folded_character)

Rule = Callable[[Sequence[str], str], bool]  # whether one of the answers occurs in a text
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")  # DPR's
ASCII_TOKEN = regex.compile(r"[a-z0-9]+|[!-~]")  # finds the same as PART in ASCII text, faster
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
NOT_FOUND = -1


def answer_tokens(text: str) -> list[str]:
    """Return the tokens of a text as DPR's rule has them."""
    return [token.lower() for token in TOKEN.findall(normalize("NFD", text))]


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Return whether an answer occurs in a passage's text by DPR's rule: its tokens in sequence."""
    tokens = answer_tokens(text)
    return any(True for answer in answers for _ in _places(answer_tokens(answer), tokens))


def has_span(answers: Sequence[str], text: str) -> bool:
    """Return whether an answer occurs in a passage's text by the project's rule: its folded words in sequence."""
    return any(True for _ in spans_of(answers, text))


def span_of(answer: str, text: str) -> tuple[int, int] | None:
    """Return start and end of the first occurrence of an answer in a text, in characters; None if there is none."""
    return next(spans_of([answer], text), None)


def spans_of(answers: Sequence[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each occurrence of the answers in a text, in characters, answer by answer."""
    folded = UNSEEN.sub("", _folded(text))
    wanted = {parts: None for answer in answers if (parts := _parts(answer)[0])}
    possible = [parts for parts in wanted if all(part in folded for part in parts)]
    parts, places = _parts(text) if possible else ((), [])
    for answer in possible:
        for first in _places(answer, parts):
            yield places[first][0], places[first + len(answer) - 1][1]


def word_places(text: str) -> list[tuple[int, int]]:
    """Return start and end of each word of a text, and of each other sign, in characters."""
    return _parts(text)[1]


def has_match(patterns: Sequence[str], text: str) -> bool:
    """Return whether a regular expression, as in CuratedTREC's answers, matches in a passage's text.

    Raises:
        UsageError: an answer is not a regular expression.
    """
    try:
        compiled = [regex.compile(normalize("NFD", one), regex.IGNORECASE | regex.MULTILINE) for one in patterns]
    except regex.error as error:
        raise UsageError(f"an answer is not a regular expression ({error})") from error
    return any(pattern.search(normalize("NFD", text)) for pattern in compiled)


def first_with_answer(answers: Sequence[str], texts: Sequence[str], rule: Rule = has_span) -> int:
    """Return the number of the first passage that contains an answer, from 0; NOT_FOUND if none does."""
    return next((number for number, text in enumerate(texts) if rule(answers, text)), NOT_FOUND)


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else normalize("NFD", text.translate(ANSWERS))


def _parts(text: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Return the folded words and signs of a text, and start and end of each in the original text."""
    folded = _folded(text)
    if text.isascii():
        found = list(ASCII_TOKEN.finditer(folded))
        return tuple(one[0] for one in found), [one.span() for one in found]
    # Folding reorders only the marks of one letter, which are in the same part: other characters keep their order.
    origin = [number for number, letter in enumerate(text) for _ in ANSWERS[ord(letter)]]
    some = [
        (part, origin[one.start() : one.end()]) for one in PART.finditer(folded) if (part := UNSEEN.sub("", one[0]))
    ]
    return tuple(part for part, _ in some), [(min(place), max(place) + 1) for _, place in some]


def _places(part: Sequence[str], whole: Sequence[str]) -> Iterator[int]:
    """Return the positions at which the items of a part occur in sequence in the whole."""
    size = len(part)
    starts = range(len(whole) - size + 1) if size else ()
    return (start for start in starts if whole[start : start + size] == part)


def find_support(answer: str, passages: Sequence[Passage]) -> Support | None:
    """Return the first occurrence of an answer in the texts of passages, without titles; None if there is none.

    The rule is that of recall (`has_span`). An answer without a letter or sign occurs nowhere.
    """
    for number, passage in enumerate(passages):
        if span := span_of(answer, passage.text):
            return Support(number, *span)
    return None


Span = tuple[int, int]  # first position, and the one after the last
MAX_OCCURRENCES = 10  # of the answers in a passage, for training


def answer_spans(answers: Sequence[str], text: str, most: int = MAX_OCCURRENCES) -> list[Span]:
    """Return start and end of the first `most` occurrences of the answers in a text, in characters, sorted.

    The rule is that of `has_span`: a text that contains an answer has a span.
    """
    return sorted(set(spans_of(answers, text)))[:most]


def question_words(question: str) -> str:
    """Return the words of a question, without case and punctuation: the same for questions that count as one."""
    return " ".join(token for token in answer_tokens(question) if token[0].isalnum())
