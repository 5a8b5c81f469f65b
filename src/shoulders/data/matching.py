"""Whether an answer stands in a passage, as DPR decides it.

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


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether the tokens of one of the answers stand in a row in a passage's text (its title does not count)."""
    tokens = answer_tokens(text)
    return any(_within(answer_tokens(answer), tokens) for answer in answers)


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


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    size = len(part)
    return any(whole[start : start + size] == part for start in range(len(whole) - size + 1)) if size else False
