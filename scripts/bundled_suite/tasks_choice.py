"""Closed-book and multiple-choice questions on countries, cities and elements."""

import random
from collections.abc import Iterator, Sequence

from scripts.bundled_suite.facts import Entity, Fact, capitalised, question
from scripts.bundled_suite.places import Country, capital_city, plain
from scripts.bundled_suite.records import Record, arranged, keys, places
from scripts.bundled_suite.splits import dice
from scripts.bundled_suite.world import World, capital_is_given_away

ASKED = ("capital", "currency", "continent", "language", "domain")
WRONG = 3
Draft = tuple[Record, str, list[str]]  # the record, its right answer, the wrong ones


def country_facts(world: World, split: str) -> list[Record]:
    """Open questions on a country, with all accepted answers."""
    chance = dice("country_facts", split)
    found = []
    for entity in world.entities["country", split]:
        for relation in ASKED:
            if fact := entity.facts.get(relation):
                asked = question(entity, fact, chance)
                about = {"country": entity.title, "relation": entity.phrases(fact).label}
                found.append({"entity": [entity.key], **about, "question": asked, "answers": list(fact.answers)})
    chance.shuffle(found)
    return found


def capital_choice(world: World, split: str) -> list[Record]:
    """Which of four cities is the capital: among the country's own cities, among other capitals, and among both."""
    chance = dice("capital_choice", split)
    countries = {entity.key: entity for entity in world.entities["country", split]}
    drafts = []
    for code, home in world.country_split.items():
        country = world.countries[code]
        if home == split and country.capital and not capital_is_given_away(country):
            entity = countries[f"country:{code}"]
            for others in _rivals(world, country, split, chance):
                cities = [name for name, _ in others]
                record: Record = {"entity": keys(entity.keys, [key for _, key in others]), "country": entity.name}
                drafts.append((record, country.capital[0], cities))
    return _finished(drafts, chance)


def _rivals(world: World, country: Country, split: str, chance: random.Random) -> Iterator[list[tuple[str, str]]]:
    """Groups of wrong cities, each with the key of its country."""
    own, key = capital_city(country, world.cities[country.code]), f"country:{country.code}"
    home = [(city.name, key) for city in world.cities[country.code] if city is not own]
    home = [(name, key) for name, key in home if plain(country.capital[0]) not in plain(name)]
    near, far = [], []
    for code, where in world.country_split.items():
        other = world.countries[code]
        if where == split and code != country.code and other.capital and not capital_is_given_away(other):
            (near if other.continent == country.continent else far).append((other.capital[0], f"country:{code}"))
    chance.shuffle(far)
    abroad = (chance.sample(near, len(near)) + far)[:WRONG]
    if len(home) >= WRONG:
        yield chance.sample(home[:8], WRONG)
    if home:
        some = chance.sample(home, min(2, len(home)))
        yield [*some, *chance.sample(abroad, WRONG - len(some))]
    yield abroad
    yield chance.sample(near + far, WRONG)


def city_country(world: World, split: str) -> list[Record]:
    """Which of four countries a city is in; countries are drawn as often as they are right."""
    chance = dice("city_country", split)
    cities = world.entities["city", split]
    titles = {entity.key: entity.title for entity in world.entities["country", split]}
    continents = {entity.key: entity.facts.get("continent") for entity in world.entities["country", split]}
    drafts = []
    for city in cities:
        country = city.keys[1]
        if plain(titles[country]) in plain(city.name):
            continue
        pool = [other.keys[1] for other in chance.sample(cities, len(cities)) if other.keys[1] != country]
        near = [key for key in pool if continents[key] == continents[country]]
        wrong = list(dict.fromkeys([*near[: chance.choice((0, 1, 1))], *pool]))[:WRONG]
        chance.shuffle(wrong)
        record = {"entity": keys(city.keys, wrong), "city": city.name}
        drafts.append((record, titles[country], [titles[key] for key in wrong]))
    chance.shuffle(drafts)
    return _finished(drafts, chance)


def element_facts(world: World, split: str) -> list[Record]:
    """Questions on elements, in both directions: of an element's properties, and which element has one."""
    chance = dice("element_facts", split)
    elements = world.entities["element", split]
    drafts = []
    for entity in elements:
        others = [other for other in chance.sample(elements, len(elements)) if other is not entity]
        for fact in entity.facts.values():
            drafts.append(_of_element(entity, fact, others, chance))
            drafts.append(_which_element(entity, fact, others))
    kept = [draft for draft in drafts if len(draft[2]) == WRONG]
    chance.shuffle(kept)
    return _finished(kept, chance)


def _of_element(entity: Entity, fact: Fact, others: Sequence[Entity], chance: random.Random) -> Draft:
    """A question for the element's value, among values of others."""
    found: dict[str, str] = {}
    if fact.relation in ("symbol", "number"):
        others = sorted(others, key=lambda other: not _alike(fact, other.facts[fact.relation]))
    for other in others:
        rival = other.facts.get(fact.relation)
        if rival and rival.excludes(fact) and len(found) < WRONG:
            found.setdefault(rival.answers[0], other.key)
    wrong = list(found)
    chance.shuffle(wrong)
    record = {"entity": keys(entity.keys, list(found.values())), "question": question(entity, fact, chance)}
    return record, fact.answers[0], wrong if fact.relation != "state" else []


def _alike(fact: Fact, other: Fact) -> bool:
    """A tempting wrong answer: a symbol of the same letter, or a number not far off."""
    if fact.measure and other.measure:
        return abs(fact.measure - other.measure) <= 20
    return fact.value[0] == other.value[0]


WHICH = {
    "symbol": "Which element has the chemical symbol {value}?",
    "number": "Which element has the atomic number {value}?",
    "series": "Which of these elements is {value}?",
    "state": "Which of these elements is {value} at room temperature?",
    "group": "Which of these elements is in {value} of the periodic table?",
    "period": "Which of these elements stands in {value} of the periodic table?",
    "block": "Which of these elements belongs to the {value} of the periodic table?",
}


def _which_element(entity: Entity, fact: Fact, others: Sequence[Entity]) -> Draft:
    """A question for the element that has the value, among elements that have another."""
    rivals = [other for other in others if fact.relation in other.facts]
    rivals = [other for other in rivals if other.facts[fact.relation].answers[0] != fact.answers[0]]
    wrong = rivals[:WRONG] if fact.relation in WHICH else []
    record = {
        "entity": keys(entity.keys, [other.key for other in wrong]),
        "question": WHICH.get(fact.relation, "").format(value=fact.value),
    }
    return record, capitalised(entity.name), [capitalised(other.name) for other in wrong]


def _finished(drafts: Sequence[Draft], chance: random.Random) -> list[Record]:
    """The records with their choices, the right one in a place of its own."""
    spots = places(len(drafts), WRONG + 1, chance)
    return [
        {**record, "choices": arranged(right, wrong, spot), "label": spot}
        for (record, right, wrong), spot in zip(drafts, spots, strict=True)
    ]
