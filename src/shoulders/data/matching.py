"""Whether an answer stands in a passage, and where: by the project's rule, and by DPR's own.

By the project's rule (`has_span`) an answer stands where its letters do, however they are written: accents count, while
case, composition, full width, ligatures, typographic quotation marks and dashes do not. Words are matched whole; in
scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character with its marks is one, but for
katakana. DPR's rule (`has_answer`) divides at spaces and punctuation alone, for figures beside published ones.

Source of DPR's: Karpukhin et al. 2020, `dpr/data/qa_validation.py`. Words: UAX 29; characters: its grapheme clusters.
"""

from collections.abc import Callable, Iterator, Sequence
from unicodedata import normalize

import regex

from shoulders.data.folding import ANSWERS, IDEOGRAPHIC, IGNORABLE, KATAKANA, SOUTH_EAST_ASIAN
from shoulders.errors import UsageError

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
