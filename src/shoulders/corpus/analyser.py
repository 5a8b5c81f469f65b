"""From text to the terms that a sparse retriever counts: the same ones in every engine.

An index is worth nothing to a query that was analysed otherwise, so what an analyser does has a name, a version and
settings, and an index carries them.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, final
from unicodedata import decimal, lookup, name, normalize

import regex
import Stemmer

from shoulders.data.folding import IDEOGRAPHIC, IGNORABLE, KATAKANA, SOUTH_EAST_ASIAN, Folding
from shoulders.errors import UsageError

# Lucene's English stop words, which Pyserini uses.
ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(ENGLISH.split())
SHORT = 2  # as in Lucene; snowball's Porter makes u of us, and nothing of s
REMEMBERED = 200_000  # stems of words
SPACELESS = rf"[{IDEOGRAPHIC}{KATAKANA}{SOUTH_EAST_ASIAN}]"  # scripts without spaces between words
CLUSTER = rf"[{SPACELESS}&&[\p{{L}}\p{{N}}]]\p{{M}}*"  # a character of theirs with its marks
WORD = rf"[[\p{{L}}\p{{N}}]--{SPACELESS}][[\p{{L}}\p{{N}}\p{{M}}]--{SPACELESS}]*"
ASCII_TERM = regex.compile("[a-z0-9]+")  # what WORD finds in plain English, faster
POSSESSIVE = r"['\u2019\u02bc\uff07]s\b"
# Accents, and the points of Arabic and Hebrew: other scripts' marks are vowels, and the last two are a kana's own.
ACCENT = r"[[\p{M}&&[\p{Inherited}\p{Arabic}\p{Hebrew}\p{Syriac}\p{Cyrillic}]]--[\u3099\u309a]]"
MODIFIER = r"[[\u02b9-\u02ff\u0640]&&\p{Lm}]"  # as in Hawai\u02bbi, and the Arabic tatweel
TERM_LETTER = regex.compile(r"[\p{L}\p{N}\p{M}]")
UNSEEN = regex.compile(rf"{IGNORABLE}|{ACCENT}|{MODIFIER}", regex.V1)
WITH = regex.compile(r"(?:LATIN|CYRILLIC) SMALL LETTER \w+(?= WITH )")  # a stroke, a hook: no mark of its own
# Source: Lucene's ASCIIFoldingFilter and ICUFoldingFilter, for letters that Unicode does not decompose.
LETTERS = {
    "\u00e6": "ae", "\u0153": "oe", "\u00fe": "th", "\u00f0": "d", "\u0131": "i", "\u0237": "j", "\u014b": "n",
    "\u0138": "q", "\u01dd": "e", "\u0259": "e", "\u025b": "e", "\u0254": "o",
    "\u0629": "\u0647", "\u0649": "\u064a", "\u06a9": "\u0643", "\u06cc": "\u064a",
}  # fmt: skip


def _folded(character: str) -> str:
    letters = UNSEEN.sub("", normalize("NFKD", character))
    return "".join(map(_plain, normalize("NFKD", letters.casefold())))


def _plain(letter: str) -> str:
    if not TERM_LETTER.match(letter):
        return " "
    if (value := decimal(letter, None)) is not None:
        return str(value)
    if found := WITH.match(name(letter, "")):
        return lookup(found[0])
    return LETTERS.get(letter, letter)


FOLDED = Folding(_folded)


@final
class Analyser:
    """English: folding, terms, stop words, Porter's stems. Scripts without spaces: each character, and each pair.

    Source: the chain of Lucene's EnglishAnalyzer (possessives, lower case, stop words, Porter), with the folding of its
    ICUFoldingFilter for letters and accents, and the pairs of its CJKBigramFilter.
    """

    NAME, VERSION = "english", 2

    def __init__(self) -> None:
        self._stem = lru_cache(REMEMBERED)(Stemmer.Stemmer("porter").stemWord)
        self._run = regex.compile(rf"(?:{CLUSTER})+|{WORD}", regex.V1)
        self._cluster, self._word = regex.compile(CLUSTER, regex.V1), regex.compile(rf"{CLUSTER}|{WORD}", regex.V1)
        self._possessive = regex.compile(POSSESSIVE, regex.IGNORECASE)

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and settings, as JSON holds them."""
        settings = {
            "folding": "NFKD, casefold, accents and strokes removed, digits, NFC",
            "terms": WORD,
            "characters and pairs": CLUSTER,
            "possessives": POSSESSIVE,
            "stop_words": sorted(STOP_WORDS),
            "stems": f"porter, of words longer than {SHORT}",
        }
        return {"name": self.NAME, "version": self.VERSION, "settings": settings}

    def terms(self, text: str) -> list[str]:
        """The terms of a text in their order."""
        text = self._possessive.sub("", text)
        plain = text.lower() if text.isascii() else normalize("NFC", text.translate(FOLDED))
        words = ASCII_TERM.findall(plain) if plain.isascii() else self._words_of(plain)
        return [self._stem(word) if len(word) > SHORT else word for word in words if word not in STOP_WORDS]

    def words(self, text: str) -> list[tuple[int, int]]:
        """Where the words of a text are that terms are made from; in scripts without spaces, its characters."""
        return [match.span() for match in self._word.finditer(text)]

    def _words_of(self, folded: str) -> list[str]:
        runs = self._run.findall(folded)
        if not self._cluster.search(folded):
            return runs
        return [word for run in runs for word in self._parts(run)]

    def _parts(self, run: str) -> list[str]:
        clusters = self._cluster.findall(run)
        return [*clusters, *map("".join, pairwise(clusters))] or [run]

    def check(self, identity: Mapping[str, Any], what: str) -> None:
        """Raise `UsageError` if something was analysed by another analyser."""
        if identity == self.identity:
            return
        ours, theirs = self.identity["settings"], identity.get("settings") or {}
        other = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        settings = f" with other settings ({', '.join(other)})" if other else ""
        raise UsageError(
            f"{what} was analysed by {_named(identity)}{settings}, this version of shoulders analyses by "
            f"{_named(self.identity)}: build it again in a new folder (shoulders index SOURCE --out FOLDER)"
        )


def _named(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('name')!r} version {identity.get('version')}"
