"""Documents cut into passages of about 100 words."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import final
from unicodedata import normalize

import regex

from shoulders.errors import UsageError

# Scripts that are written without spaces count by the character; nothing longer than 1,000 characters is one word.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}"
WORD = regex.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]{{1,1000}}")
ABBREVIATED = r"(?<!\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Rev|No|vs|cf|al)\.)"
SENTENCE_END = regex.compile(
    rf"[.!?\u2026]+[\p{{Pe}}\p{{Pf}}\"']*{ABBREVIATED}(?=\s+[\p{{Ps}}\p{{Pi}}\"']*[\p{{Lu}}\p{{Lo}}\p{{N}}])"
    r"|[\u3002\uff01\uff1f]+|\n\s*(?=\n)"
)


@final
@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents become passages. Source: Karpukhin et al. 2020, section 4.1 (disjoint blocks of 100 words).

    Attributes:
        words: of a passage; the last one of a document may be shorter.
        sentences: end each passage with a sentence, where one ends within so many words.
    """

    words: int = 100
    sentences: bool = False

    def __post_init__(self) -> None:
        if self.words < 1:
            raise UsageError(f"passages of {self.words} words: 1 at least")

    def cut(self, text: str) -> Iterator[str]:
        """The passages of a text, every word of it in one of them; runs of white space become one space."""
        for start, end in self._sentence_blocks(text) if self.sentences else self._blocks(text, 0, len(text)):
            yield " ".join(text[start:end].split())

    def _blocks(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        first, last, count = start, start, 0
        for word in WORD.finditer(text, start, end):
            if count == self.words:
                yield first, last
                count = 0
            if count == 0:
                first = word.start()
            last, count = word.end(), count + 1
        if count:
            yield first, last

    def _sentence_blocks(self, text: str) -> Iterator[tuple[int, int]]:
        first, last, count = 0, 0, 0
        for start, end in _sentences(text):
            length = sum(1 for _ in WORD.finditer(text, start, end))
            if count and count + length > self.words:
                yield first, last
                count = 0
            if length > self.words:
                yield from self._blocks(text, start, end)
            elif length:
                first, last, count = (first if count else start), end, count + length
        if count:
            yield first, last


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for stop in SENTENCE_END.finditer(text):
        yield start, stop.end()
        start = stop.end()
    yield start, len(text)


def same_text(text: str) -> bytes:
    """What two passages share if they differ in letter case, width of characters or white space only."""
    return blake2b(" ".join(normalize("NFKC", text).casefold().split()).encode(), digest_size=16).digest()
