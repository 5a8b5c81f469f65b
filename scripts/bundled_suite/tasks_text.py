"""Tasks on short texts that state facts: reading, inference, paraphrase, and writing such texts."""

import random
import re

from scripts.bundled_suite.facts import Entity, Fact, described, question
from scripts.bundled_suite.phrases import tied
from scripts.bundled_suite.records import SIZES, Record, collected, keys, subjects
from scripts.bundled_suite.splits import dice
from scripts.bundled_suite.world import World

ENTAILED, CONTRADICTED, UNSAID = range(3)
NEGATED = 3  # of ten hypotheses, whatever their label
SAME_ENTITY = 0.6  # of the question pairs that differ
SAME_WORDS = 0.5  # of those on two entities: only the name differs


def fact_sheets(world: World, split: str) -> list[Record]:
    """A passage on one entity and a question that a span of it answers."""
    chance = dice("fact_sheets", split)
    stream = subjects(world, split, "fact_sheets")

    def make(_: int) -> Record | None:
        entity = next(stream)
        facts = _some_facts(entity, chance.choice((3, 4, 4)), chance)
        passage = described(entity, facts, chance)
        if not 2 <= _sentences(passage) <= 4:
            return None
        asked = chance.choice(facts)
        spans = dict(span for text in asked.answers if (span := _only_span(text, passage)) is not None)
        if not spans:
            return None
        return {
            "entity": list(entity.keys),
            "title": entity.title,
            "context": passage,
            "question": entity.said(chance.choice(entity.phrases(asked).questions), asked),
            "answers": {"text": list(spans), "answer_start": list(spans.values())},
        }

    return collected(SIZES[split], make, chance)


def fact_inference(world: World, split: str) -> list[Record]:
    """Whether a statement follows from two or three sentences, contradicts them, or is left open by them."""
    chance = dice("fact_inference", split)
    stream = subjects(world, split, "fact_inference")

    def make(done: int) -> Record | None:
        entity, label = next(stream), done % 3
        facts = _some_facts(entity, chance.choice((2, 3, 3, 4)), chance)
        premise = described(entity, facts, chance)
        if not 2 <= _sentences(premise) <= 3:
            return None
        about = _hypothesis_fact(entity, facts, label, chance)
        if about is None:
            return None
        rival = _rival(world, entity, about, split, chance)
        negated = done // 3 % 10 < NEGATED
        as_is = chance.random() < 0.5 if label == UNSAID else (label == ENTAILED) != negated
        if rival is None or (negated and not entity.phrases(about).single):
            return None
        stated = about if as_is else rival[1]
        wordings = entity.phrases(about).denials if negated else entity.phrases(about).sentences
        hypothesis = entity.said(chance.choice(wordings), stated)
        if hypothesis in premise:
            return None
        named = entity.keys if stated is about else keys(entity.keys, rival[0].keys)
        return {"entity": list(named), "premise": premise, "hypothesis": hypothesis, "label": label}

    return collected(SIZES[split], make, chance)


def question_pairs(world: World, split: str) -> list[Record]:
    """Two questions that ask for the same fact in other words, or for different facts in similar words."""
    chance = dice("question_pairs", split)
    stream = subjects(world, split, "question_pairs")

    def make(done: int) -> Record | None:
        entity, label = next(stream), done % 2
        fact = chance.choice(list(entity.facts.values()))
        first, second = chance.sample(entity.phrases(fact).questions, 2)
        one = entity.said(first, fact)
        other, named = entity.said(second, fact), entity.keys
        if not label and chance.random() < SAME_ENTITY:
            apart = [rest for rest in entity.facts.values() if not _linked(entity, rest, fact)]
            other = question(entity, chance.choice(apart), chance)
        elif not label:
            rival = _rival(world, entity, fact, split, chance)
            if rival is None:
                return None
            other = rival[0].said(first if chance.random() < SAME_WORDS else second, fact)
            named = tuple(keys(entity.keys, rival[0].keys))
        pair = chance.sample([one, other], 2)
        return {"entity": list(named), "question1": pair[0], "question2": pair[1], "label": label}

    return collected(SIZES[split], make, chance)


def fact_sentences(world: World, split: str) -> list[Record]:
    """A table of an entity's properties and sentences that tell them, one to be written and two more that count."""
    chance = dice("fact_sentences", split)
    stream = subjects(world, split, "fact_sentences")

    def make(_: int) -> Record | None:
        entity = next(stream)
        facts = _some_facts(entity, chance.choice((2, 2, 3, 3, 4)), chance)
        told = list(dict.fromkeys(described(entity, chance.sample(facts, len(facts)), chance) for _ in range(8)))[:3]
        if len(told) < 3:
            return None
        fields = [{"key": entity.phrases(fact).label, "value": fact.answers[0]} for fact in facts]
        return {
            "entity": list(entity.keys),
            "fields": [{"key": entity.kind, "value": entity.title}, *fields],
            "answers": told,
        }

    return collected(SIZES[split], make, chance)


def _some_facts(entity: Entity, count: int, chance: random.Random) -> list[Fact]:
    """Facts that say nothing about each other, in random order."""
    chosen: list[Fact] = []
    for fact in chance.sample(list(entity.facts.values()), len(entity.facts)):
        if len(chosen) < count and not any(_linked(entity, fact, other) for other in chosen):
            chosen.append(fact)
    return chosen


def _hypothesis_fact(entity: Entity, facts: list[Fact], label: int, chance: random.Random) -> Fact | None:
    """A fact that the hypothesis may be about: a stated one, or one that the stated ones leave open."""
    if label == UNSAID:
        choice = [fact for fact in entity.facts.values() if not any(_linked(entity, fact, said) for said in facts)]
    else:
        choice = [fact for fact in facts if label == ENTAILED or entity.phrases(fact).single]
    return chance.choice(choice) if choice else None


def _rival(world: World, entity: Entity, fact: Fact, split: str, chance: random.Random) -> tuple[Entity, Fact] | None:
    """Another entity of the kind and the split whose value excludes this one."""
    for other in chance.sample(world.entities[entity.kind, split], len(world.entities[entity.kind, split])):
        rival = other.facts.get(fact.relation)
        if rival is not None and rival.excludes(fact):
            return other, rival
    return None


def _only_span(text: str, passage: str) -> tuple[str, int] | None:
    """The text as the passage has it and where, if it stands there once."""
    pattern = rf"(?<![\w.,]){re.escape(text)}(?!\w|[.,]\d)"
    found = [*re.finditer(pattern, passage, re.IGNORECASE if " " in text else 0)]
    return (found[0].group(), found[0].start()) if len(found) == 1 else None


def _sentences(text: str) -> int:
    return 1 + len(re.findall(r"[^.]{3}\. (?=[A-Z.])", text))


def _linked(entity: Entity, one: Fact, other: Fact) -> bool:
    """True if the facts are of one relation, or one says something about the other."""
    return one.relation == other.relation or tied(entity.kind, one.relation, other.relation)
