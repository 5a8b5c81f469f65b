"""From text to the terms that a sparse retriever counts: the same ones in every engine.

An index is worth nothing to a query that was analysed otherwise, so what an analyser does has a name, a version and
settings, and an index carries them.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, final
from unicodedata import normalize

import regex
import Stemmer

from shoulders.errors import UsageError

# Lucene's English stop words, which Pyserini uses.
ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(ENGLISH.split())
SHORT = 2  # as in Lucene; snowball's Porter makes u of us, and nothing of s
REMEMBERED = 200_000  # stems of words
SPACELESS = r"\p{Han}\p{Hiragana}"  # scripts whose characters are terms of their own
TERM = rf"[{SPACELESS}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{SPACELESS}]]+"
ASCII_TERM = regex.compile("[a-z0-9]+")  # what TERM finds in plain English, faster
POSSESSIVE = r"['\u2019]s\b"
# Accents only: the marks of Devanagari or Thai are vowels.
ACCENTS = r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
JOINERS = r"[\u00ad\u200c\u200d]+"


@final
class Analyser:
    """English: folding, terms, stop words, Porter's stems.

    Source: the chain of Lucene's EnglishAnalyzer (possessives, lower case, stop words, Porter), with Unicode folding.
    """

    NAME, VERSION = "english", 1

    def __init__(self) -> None:
        self._stem = lru_cache(REMEMBERED)(Stemmer.Stemmer("porter").stemWord)
        self._term = regex.compile(TERM, regex.V1)
        self._possessive = regex.compile(POSSESSIVE, regex.IGNORECASE)
        self._accents, self._joiners = regex.compile(ACCENTS), regex.compile(JOINERS)

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and settings, as JSON holds them."""
        settings = {
            "folding": "NFKD, accents removed, casefold",
            "terms": TERM,
            "possessives": POSSESSIVE,
            "stop_words": sorted(STOP_WORDS),
            "stems": f"porter, of words longer than {SHORT}",
        }
        return {"name": self.NAME, "version": self.VERSION, "settings": settings}

    def terms(self, text: str) -> list[str]:
        """The terms of a text in their order."""
        text = self._possessive.sub("", text)
        words = ASCII_TERM.findall(text.lower()) if text.isascii() else self._term.findall(self._folded(text))
        return [self._stem(word) if len(word) > SHORT else word for word in words if word not in STOP_WORDS]

    def words(self, text: str) -> list[tuple[int, int]]:
        """Where the words of a text are that terms are made from."""
        return [match.span() for match in self._term.finditer(text)]

    def _folded(self, text: str) -> str:
        plain = self._accents.sub("", normalize("NFKD", self._joiners.sub("", text)))
        return normalize("NFKD", plain.casefold())

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
