"""Documents cut into passages of about 100 words."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import final
from unicodedata import normalize

import regex
from unicode_segmentation_rs import unicode_sentences

from shoulders.data.folding import IDEOGRAPHIC, LOOKS, SOUTH_EAST_ASIAN
from shoulders.errors import UsageError

# What counts as a word of a passage in scripts without spaces: an ideograph or kana, and three characters of Thai, Lao,
# Khmer or Burmese with their marks. Nothing longer than 1,000 characters is one word.
EACH = rf"{IDEOGRAPHIC}\p{{Katakana}}"
WORD = regex.compile(
    rf"[^\s\u200b{EACH}{SOUTH_EAST_ASIAN}]{{1,1000}}|[{EACH}]\p{{M}}*|(?:[{SOUTH_EAST_ASIAN}]\p{{M}}*){{1,3}}"
)
ABBREVIATED = regex.compile(r"\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Rev|No|vs|cf|al)\.[^\S\n]*\Z")
NEAR = 20  # characters before a sentence's end in which an abbreviation is looked for
LINE_BREAK = regex.compile(r"(?<!\n\s*)\n(?!\s*\n)")  # inside a paragraph


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
    """Sentences by UAX 29, not ended by an abbreviation, nor by a line's end alone."""
    plain = regex.sub(r"\p{Cs}", "\ufffd", text)  # half a surrogate pair is no text to the library
    plain = LINE_BREAK.sub(" ", plain.replace("\r", " "))
    start, end = 0, 0
    for sentence in unicode_sentences(plain):  # those of signs alone are not among them, and go with the one before
        begin = plain.index(sentence, end)
        if begin > start and not ABBREVIATED.search(plain, max(start, end - NEAR), end):
            yield start, begin
            start = begin
        end = begin + len(sentence)
    yield start, len(text)


def same_text(text: str) -> bytes:
    """What two passages share if they differ in letter case, the look of letters (full width) or white space only."""
    plain = normalize("NFD", normalize("NFD", text.translate(LOOKS)).casefold())
    return blake2b(" ".join(plain.split()).encode(errors="surrogatepass"), digest_size=16).digest()
