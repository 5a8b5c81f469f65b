"""Common nouns with a gloss that can be asked for, each in its split."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scripts.bundled_suite.lists import words
from scripts.bundled_suite.splits import SPLITS, split_of
from scripts.bundled_suite.wordnet import Synset, WordNet

USED = 3  # how often the tagged texts and the glosses together must use a word
RARELY_USED = {"noun.animal": 1, "noun.plant": 1, "noun.food": 1, "noun.body": 1}
SHORTEST, LONGEST = 4, 20  # words of a gloss
FAMILY_FRIENDLY = re.compile(
    r"\b(abort|anus|breast|brothel|buttock|concubin|copulat|corpse|cunt|defecat|derogat|disparag|drug|ejacul|erect"
    r"|erotic|ethnic|execut|excrem|faec|fec(es|al)|feces|fetish|fornicat|genital|gigolo|heroin|homosex|incest|intercourse"
    r"|kill|lesbian|lust|marijuana|masturb|menstru|murder|narcotic|nazi|negro|nude|obscen|offensive|orgasm|penis|porn"
    r"|prostitut|pubic|racial|rape|rapist|rectum|scrotum|semen|sex|slave|slur|sodom|suicid|testic|tortur|urin|vagina"
    r"|victim|vulgar|vulva|whore|womb|uter(us|ine)|torture|offender|bowel|stool|groin|crotch|nipple"
    r"|clitor|promiscu|sperm|reproduct|castrat|circumcis|racis|heathen|savage|massacre|behead|bastard|cancer|tumor)"
)
UNWELCOME = words("""
    aboriginal amphetamine barbarian bitch bum buttocks cannibalism colored coon crap cripple cretin darky deviant
    dyke fag fairy gypsy halfbreed hooker hussy idiot imbecile lunatic mammy midget moron mulatto octoroon
    oriental pansy pimp psilocybin queer retard slut spastic squaw subnormal syphilis tart tit tramp
    """)
SLANG = words("ethnic_slur disparagement obscenity dirty_word vulgarism slang derogation archaism")


@dataclass(frozen=True, slots=True)
class Noun:
    """The most usual meaning of a common noun.

    Attributes:
        key: "noun:" and the word.
        file: WordNet's lexicographer file, which sorts synsets by subject.
        uses: how often the tagged texts and the glosses use the word.
        clear: whether this meaning is surely the most usual one: it was met in the tagged texts, or is the only one.
        gloss: its definition, or None if it is not plain enough to ask for the word by it.
        clause: the same, but proper names may occur.
        above: what it is a kind of, by offset, with the steps to each.
        any_above: the same of all meanings of the word.
    """

    key: str
    word: str
    synset: str
    file: str
    split: str
    uses: int
    clear: bool
    gloss: str | None
    clause: str | None
    above: Mapping[str, int]
    any_above: Collection[str]

    def related(self, other: "Noun") -> bool:
        """True if one is a kind of the other, or one's gloss names the other."""
        if other.synset in self.any_above or self.synset in other.any_above:
            return True
        return _names(self.gloss, other.word) or _names(other.gloss, self.word)


def read_nouns(net: WordNet, reserved: Collection[str], unsaid: Collection[str]) -> dict[str, list[Noun]]:
    """The nouns of each split, in the order of the alphabet.

    Args:
        reserved: words that name other entities and are no nouns here.
        unsaid: words that must not occur in a gloss, which would state a fact about another entity.
    """
    slang = {offset for word in SLANG for offset in net.senses.get(word, ())}
    chosen: dict[str, str] = {}
    for word in sorted(net.senses, key=lambda word: (-net.tagged[word], -net.mentions[word], word)):
        first = net.senses[word][0]
        if first not in chosen and word not in reserved and _common(word, net) and not slang & _usages(word, net):
            chosen[first] = word
    clauses = _clauses(chosen, net, unsaid)
    found: dict[str, list[Noun]] = {split: [] for split in SPLITS}
    for offset, word in sorted(chosen.items(), key=lambda pair: pair[1]):
        clause = clauses.get(offset)
        every = {up for sense in net.senses[word] for up in (sense, *net.ancestors(sense))}
        noun = Noun(
            f"noun:{word}",
            word,
            offset,
            net.synsets[offset].file,
            split_of(f"noun:{word}"),
            _uses(word, net),
            net.tagged[word] > 0 or len(net.senses[word]) == 1,
            clause if clause and clause == clause.lower() else None,
            clause,
            net.ancestors(offset),
            every,
        )
        found[noun.split].append(noun)
    return found


def by_file(nouns: Sequence[Noun]) -> dict[str, list[Noun]]:
    """The nouns that have a gloss, by their lexicographer file."""
    found: dict[str, list[Noun]] = defaultdict(list)
    for noun in nouns:
        if noun.gloss:
            found[noun.file].append(noun)
    return found


def _common(word: str, net: WordNet) -> bool:
    """A word in lower case that is known well enough and is mostly a noun."""
    synset = net.synsets[net.senses[word][0]]
    if word not in synset.words or not re.fullmatch(r"[a-z]{3,14}", word) or word in UNWELCOME:
        return False
    if FAMILY_FRIENDLY.search(word):
        return False
    if net.as_other[word] > net.as_noun[word]:
        return False
    return _uses(word, net) >= RARELY_USED.get(synset.file, USED)


def _usages(word: str, net: WordNet) -> set[str]:
    """What kinds of speech the noun belongs to in any of its meanings."""
    return {usage for sense in net.senses[word] for usage in net.synsets[sense].usages}


def _uses(word: str, net: WordNet) -> int:
    return net.tagged[word] + net.mentions[word] if net.mentions[word] else 0


def _clauses(chosen: Mapping[str, str], net: WordNet, unsaid: Collection[str]) -> dict[str, str]:
    """Definitions that can be asked for; those that two words share are left out."""
    found = {offset: text for offset, word in chosen.items() if (text := _clause(net.synsets[offset], word, unsaid))}
    times: dict[str, int] = defaultdict(int)
    for text in found.values():
        times[text] += 1
    return {offset: text for offset, text in found.items() if times[text] == 1}


def _clause(synset: Synset, word: str, unsaid: Collection[str]) -> str | None:
    """The first clause of the gloss, if it is plain, of fair length, and names neither the word nor another entity."""
    text = re.split(r';|"', synset.gloss)[0].strip().rstrip(".,")
    text = re.sub(r"^\([^)]*\)\s*", "", text)
    words = text.split()
    if not SHORTEST <= len(words) <= LONGEST or not text.isascii() or FAMILY_FRIENDLY.search(text.lower()):
        return None
    if re.search(r"[():\d`]|--|\betc\b|e\.g|i\.e", text) or any(name in text for name in unsaid if name.istitle()):
        return None
    stem = word[: max(4, len(word) - 3)]
    plain = re.findall(r"[a-z]+", text.lower())
    if any(one.startswith(stem) or (len(one) >= 4 and stem.startswith(one)) for one in plain):
        return None
    return None if {*plain} & {*unsaid} else text


def _names(gloss: str | None, word: str) -> bool:
    return gloss is not None and word in gloss and re.search(rf"\b{re.escape(word)}s?\b", gloss) is not None
