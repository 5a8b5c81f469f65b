"""Tasks on common nouns and their definitions."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.bundled_suite import kinds
from scripts.bundled_suite.lists import words
from scripts.bundled_suite.nouns import Noun, by_file
from scripts.bundled_suite.records import SIZES, Record, arranged, places
from scripts.bundled_suite.splits import dice
from scripts.bundled_suite.world import World

WRONG = 3
DEFINED = words("""
    noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition noun.communication noun.event
    noun.feeling noun.food noun.group noun.location noun.object noun.person noun.phenomenon noun.plant noun.possession
    noun.process noun.shape noun.state noun.substance noun.time
    """)
COUNTED = words("""
    noun.act noun.animal noun.artifact noun.body noun.communication noun.event noun.food noun.group noun.location
    noun.object noun.person noun.plant noun.possession noun.shape noun.cognition
    """)
MASS = re.compile(r"(ing|tion|sion|ment|ness|ity|ism|ance|ence|ics|logy|graphy|ware|s|able|ation|ery)$")
NOT_COUNTED = words("""
    advice bent calico canvas chiffon collagen corduroy cotton cutlery dairy denim disrespect dynamite equipment
    felt flannel gauze homespun hypocrisy lace linen luggage muslin nylon plaid proof quinine rayon satin silk
    slapstick time tweed velvet wool worsted
    """)
KNOWN, FAMILIAR = 3, 2  # uses in WordNet's own texts: a reader can be asked for the word, or knows what it is
PER_KIND = 12  # one kind makes up at most this part of the records
SPOKEN_Y = re.compile(r"(uni|us[aeu]|ut[eio]|ur[ae]|uk|eu|ewe)")  # as in "a unit"
SILENT_H = re.compile(r"(hour|heir|honor|honest)")


@dataclass(frozen=True, slots=True)
class Topic:
    """A category for a reader.

    Attributes:
        name: as it is answered.
        file: the lexicographer file of its nouns.
        above: words, under one of whose meanings they all come.
        spoilers: words that a definition must not have, since they give the category away.
    """

    name: str
    file: str
    above: frozenset[str]
    spoilers: frozenset[str]


TOPICS = (
    Topic("animal", "noun.animal", words("animal"), words("animal animals")),
    Topic("plant", "noun.plant", words("plant fungus plant_part"), words("plant plants")),
    Topic("food or drink", "noun.food", words("food foodstuff beverage"), words("food foods drink drinks")),
    Topic("person", "noun.person", words("person"), words("person persons people")),
    Topic("body part", "noun.body", words("body_part"), words("body part parts bodily")),
    Topic("object made by people", "noun.artifact", words("artifact"), words("object objects made man-made people")),
    Topic(
        "substance or material",
        "noun.substance",
        words("substance material"),
        words("substance substances material materials"),
    ),
    Topic("activity", "noun.act", words("activity"), words("activity activities")),
)


def definition_choice(world: World, split: str) -> list[Record]:
    """A definition and four nouns of one subject, one of which it defines."""
    chance = dice("definition_choice", split)
    files = {name: nouns for name, nouns in by_file(_known(world, split)).items() if name in DEFINED}
    drafts = _different(files, SIZES[split], chance)
    return [
        {
            "entity": [noun.key, *(other.key for other in wrong)],
            "definition": noun.gloss,
            "choices": arranged(noun.word, [other.word for other in wrong], spot),
            "label": spot,
        }
        for (noun, wrong), spot in zip(drafts, places(len(drafts), WRONG + 1, chance), strict=True)
    ]


def gloss_endings(world: World, split: str) -> list[Record]:
    """The beginning of a definition and four endings of like length, one of them the noun's own."""
    chance = dice("gloss_endings", split)
    found = by_file(_known(world, split))
    files = {name: [noun for noun in found[name] if _countable(noun)] for name in found if name in COUNTED}
    drafts = _different(files, SIZES[split], chance, alike=True)
    return [
        {
            "entity": [noun.key, *(other.key for other in wrong)],
            "word": noun.word,
            "stem": f"{_article(noun.word)} {noun.word} is",
            "choices": arranged(f"{noun.gloss}.", [f"{other.gloss}." for other in wrong], spot),
            "label": spot,
        }
        for (noun, wrong), spot in zip(drafts, places(len(drafts), WRONG + 1, chance), strict=True)
    ]


def gloss_topics(world: World, split: str) -> list[Record]:
    """A definition to be sorted under one of eight subjects, each as frequent."""
    chance = dice("gloss_topics", split)
    fitting = []
    for place, topic in enumerate(TOPICS):
        above = {sense for top in topic.above for sense in world.senses[top]}
        nouns = [
            noun for noun in world.nouns[split] if noun.file == topic.file and noun.clause and above & {*noun.above}
        ]
        nouns = [noun for noun in nouns if not topic.spoilers & {*re.findall(r"[a-z-]+", str(noun.clause).lower())}]
        fitting.append([(place, noun) for noun in chance.sample(nouns, len(nouns))])
    each = min(SIZES[split] // len(TOPICS), *(len(nouns) for nouns in fitting))
    chosen = [pair for nouns in fitting for pair in nouns[:each]]
    chance.shuffle(chosen)
    return [{"entity": [noun.key], "definition": noun.clause, "label": place} for place, noun in chosen]


def kind_of(world: World, split: str) -> list[Record]:
    """Whether a noun names a kind of something; each kind is as often right as wrong."""
    chance = dice("kind_of", split)
    pairs: list[tuple[str, Noun, Noun]] = []  # a kind, one of it, and one not of it
    for group in kinds.GROUPS:
        above = {kind: world.sense(kind, file) for file, text in group.items() for kind in text.split()}
        members = _members(world, split, above)
        for kind, true in members.items():
            false = _strangers(members, kind, above[kind])
            count = min(len(true), len(false), SIZES[split] // 2 // PER_KIND)
            some = zip(chance.sample(true, count), chance.sample(false, count), strict=True)
            pairs += [(kinds.named(kind), one, other) for one, other in some]
    chosen = chance.sample(pairs, min(len(pairs), SIZES[split] // 2))
    found = [
        _kind_record(noun, kind, label) for kind, *both in chosen for label, noun in zip((1, 0), both, strict=True)
    ]
    chance.shuffle(found)
    return found


def _members(world: World, split: str, above: Mapping[str, str]) -> dict[str, list[Noun]]:
    """The nouns of each kind, without those whose name gives it away."""
    nouns = [
        noun for noun in world.nouns[split] if noun.uses >= FAMILIAR and noun.clear and noun.word not in kinds.DOUBTFUL
    ]
    found = {}
    for kind, synset in above.items():
        wrong = kinds.NOT_OF_KIND.get(kind, frozenset())
        some = [noun for noun in nouns if synset in noun.above and noun.word not in wrong]
        found[kind] = [noun for noun in some if not _same_word(noun.word, kinds.named(kind))]
    return found


def _strangers(members: Mapping[str, Sequence[Noun]], kind: str, synset: str) -> list[Noun]:
    """Nouns of the group's other kinds that are of this kind in no meaning."""
    others = {
        noun.key: noun
        for other, nouns in members.items()
        for noun in nouns
        if other != kind and not kinds.overlapping(kind, other)
    }
    unsure = {noun.key for other, nouns in members.items() if kinds.overlapping(kind, other) for noun in nouns}
    unsure |= {key for key, noun in others.items() if synset in noun.any_above}
    unsure |= {key for key, noun in others.items() if kind in str(noun.gloss) or _same_word(noun.word, kind)}
    return [noun for key, noun in sorted(others.items()) if key not in unsure]


def _same_word(word: str, kind: str) -> bool:
    return kind in word or word in kind


def _kind_record(noun: Noun, kind: str, label: int) -> Record:
    return {"entity": [noun.key], "word": noun.word, "kind": kinds.named(kind), "label": label}


def _known(world: World, split: str) -> list[Noun]:
    return [noun for noun in world.nouns[split] if noun.uses >= KNOWN and noun.clear]


def _different(
    files: Mapping[str, Sequence[Noun]], size: int, chance: random.Random, *, alike: bool = False
) -> list[tuple[Noun, list[Noun]]]:
    """Nouns, none twice, each with others of its subject that its gloss does not fit."""
    drafts: list[tuple[Noun, list[Noun]]] = []
    nouns = [noun for name in sorted(files) for noun in files[name]]
    for noun in chance.sample(nouns, len(nouns)):
        others = [other for other in files[noun.file] if other is not noun and not noun.related(other)]
        longer = chance.choice(range(WRONG + 1)) if alike else None
        wrong = _like_long(noun, others, longer, chance) if longer is not None else _some(others, WRONG, chance)
        if len(wrong) == WRONG and len(drafts) < size:
            drafts.append((noun, wrong))
    return drafts


def _like_long(noun: Noun, others: Sequence[Noun], longer: int, chance: random.Random) -> list[Noun]:
    """Nouns with glosses about as long, a given number of them longer: so length says nothing about which is right."""
    reach = max(12, _length(noun) // 5)
    above = [other for other in others if 0 < _length(other) - _length(noun) <= reach]
    below = [other for other in others if 0 < _length(noun) - _length(other) <= reach]
    found = _some(above, longer, chance) + _some(below, WRONG - longer, chance)
    return chance.sample(found, len(found))


def _some(nouns: Sequence[Noun], count: int, chance: random.Random) -> list[Noun]:
    return chance.sample(nouns, min(count, len(nouns)))


def _length(noun: Noun) -> int:
    return len(noun.gloss or "")


def _countable(noun: Noun) -> bool:
    """A noun that can stand after "a", as its definition does."""
    if noun.word in NOT_COUNTED or MASS.search(noun.word):
        return False
    return noun.gloss is not None and noun.gloss.split()[0] in ("a", "an")


def _article(word: str) -> str:
    vowel = word[0] in "aeiou" and not SPOKEN_Y.match(word)
    return "An" if vowel or SILENT_H.match(word) else "A"
