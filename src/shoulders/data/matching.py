"""Whether an answer stands in a passage, as DPR decides it, and where.

Source: Karpukhin et al. 2020, `dpr/data/qa_validation.py`.
"""

from collections.abc import Sequence
from unicodedata import normalize

import regex

from shoulders.errors import UsageError

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
NEVER = -1


def answer_tokens(text: str) -> list[str]:
    """The tokens by which an answer is looked for."""
    return [token.lower() for token in TOKEN.findall(normalize("NFD", text))]


def placed_tokens(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The tokens of `answer_tokens`, and for each where it is in the text: its characters from, and up to."""
    plain = normalize("NFD", text)
    found = list(TOKEN.finditer(plain))
    # Marks are put in order among themselves only, and stand in one token: what is before and after them is not moved.
    origin = [number for number, letter in enumerate(text) for _ in normalize("NFD", letter)]
    return [one[0].lower() for one in found], [(origin[one.start()], origin[one.end() - 1] + 1) for one in found]


def span_of(answer: str, text: str) -> tuple[int, int] | None:
    """Where the tokens of an answer first stand in a row in a text: its characters from, and up to; None if nowhere."""
    tokens, places = placed_tokens(text)
    wanted = answer_tokens(answer)
    first = _place(wanted, tokens)
    return None if first == NEVER else (places[first][0], places[first + len(wanted) - 1][1])


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether the tokens of one of the answers stand in a row in a passage's text (its title does not count)."""
    tokens = answer_tokens(text)
    return any(_place(answer_tokens(answer), tokens) != NEVER for answer in answers)


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


def first_with_answer(answers: Sequence[str], texts: Sequence[str]) -> int:
    """The number of the first passage that has an answer, from 0; NEVER if none has."""
    return next((number for number, text in enumerate(texts) if has_answer(answers, text)), NEVER)


def _place(part: list[str], whole: list[str]) -> int:
    """Where a part first stands in a row in the whole; NEVER if nowhere, or if there is nothing to look for."""
    size = len(part)
    starts = range(len(whole) - size + 1) if size else ()
    return next((start for start in starts if whole[start : start + size] == part), NEVER)
