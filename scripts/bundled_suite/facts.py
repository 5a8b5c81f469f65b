"""What is known about an entity, and how it is said."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.bundled_suite.phrases import PHRASES, Phrases

DIFFERENT = 1.25  # two rounded numbers this much apart are surely not the same
OPPOSED = 90  # degrees


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of a relation.

    Attributes:
        relation: as `phrases` names it.
        value: as it stands in a sentence, with its article.
        answers: all accepted answers to a question for it, the preferred first.
        measure: the number or, of a direction, the degrees behind it.
    """

    relation: str
    value: str
    answers: tuple[str, ...]
    measure: float | None = None

    def excludes(self, other: "Fact") -> bool:
        """True if both cannot hold of one entity."""
        if self.relation == "direction":
            turn = abs(float(self.measure or 0) - float(other.measure or 0)) % 360
            return min(turn, 360 - turn) >= OPPOSED
        if self.measure is not None and other.measure is not None:
            return max(self.measure, other.measure) >= DIFFERENT * min(self.measure, other.measure)
        mine, others = {text.lower() for text in self.answers}, {text.lower() for text in other.answers}
        return not mine & others and self.value != other.value


@dataclass(frozen=True, slots=True)
class Entity:
    """A country, a city or an element in its split.

    Attributes:
        key: unique among all entities of the suite.
        kind: "country", "city" or "element".
        name: as it stands in a sentence ("the Netherlands").
        title: as it stands alone ("Netherlands").
        keys: of the entities that its facts are about, itself first (a city's country).
    """

    key: str
    kind: str
    name: str
    title: str
    split: str
    keys: tuple[str, ...]
    facts: Mapping[str, Fact]

    def said(self, template: str, fact: Fact) -> str:
        """A phrase about one fact, as a sentence begins."""
        owner = f"{self.name}'" if self.name.endswith("s") else f"{self.name}'s"
        return capitalised(template.format(name=self.name, owner=owner, value=fact.value))

    def phrases(self, fact: Fact) -> Phrases:
        """The wordings for a fact of this kind of entity."""
        return PHRASES[self.kind][fact.relation]


def capitalised(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def statement(entity: Entity, fact: Fact, chance: random.Random) -> str:
    """One sentence for one fact, naming the entity."""
    return entity.said(chance.choice(entity.phrases(fact).sentences), fact)


def question(entity: Entity, fact: Fact, chance: random.Random) -> str:
    """One wording of the question for a fact."""
    return entity.said(chance.choice(entity.phrases(fact).questions), fact)


def described(entity: Entity, facts: Sequence[Fact], chance: random.Random) -> str:
    """A short text that states the facts, in sentences of one or two facts each."""
    text, rest = _opening(entity, list(facts), chance)
    while rest:
        if len(rest) >= 2 and chance.random() < 0.3:
            text, rest = f"{text} It {_verbs(entity, rest[:2], chance)}.", rest[2:]
        else:
            follow = chance.choice(entity.phrases(rest[0]).its)
            text, rest = f"{text} {entity.said(follow, rest[0])}", rest[1:]
    return text


def _opening(entity: Entity, facts: list[Fact], chance: random.Random) -> tuple[str, list[Fact]]:
    """The first sentence, naming the entity, and the facts that it leaves."""
    name = capitalised(entity.name)
    style = chance.choice(("plain", "list", "whose")) if len(facts) > 1 else "plain"
    whose = entity.phrases(facts[0]).whose
    if style == "list":
        return f"{name} {_verbs(entity, facts[:2], chance)}.", facts[2:]
    if style == "whose" and whose:
        aside = whose.format(value=facts[0].value)
        return f"{name}, whose {aside}, {_verb(entity, facts[1], chance)}.", facts[2:]
    if len(facts) > 1:  # what follows says "it": the sentence has to be about the entity
        return f"{name} {_verb(entity, facts[0], chance)}.", facts[1:]
    return statement(entity, facts[0], chance), facts[1:]


def _verbs(entity: Entity, facts: Sequence[Fact], chance: random.Random) -> str:
    """Two predicates, joined; a verb that both have is said once."""
    first, second = (_verb(entity, fact, chance) for fact in facts)
    for verb in ("has ", "lies "):
        if first.startswith(verb):
            second = second.removeprefix(verb)
    return f"{first} and {second}"


def _verb(entity: Entity, fact: Fact, chance: random.Random) -> str:
    return chance.choice(entity.phrases(fact).verbs).format(value=fact.value)
