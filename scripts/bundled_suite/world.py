"""All entities with their facts, each in its split."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.bundled_suite.elements import Element, read_elements
from scripts.bundled_suite.facts import Entity, Fact
from scripts.bundled_suite.kinds import all_kinds, named
from scripts.bundled_suite.nouns import Noun, read_nouns
from scripts.bundled_suite.places import (
    DIRECTIONS,
    City,
    Country,
    bearing,
    capital_city,
    kilometers,
    plain,
    read_cities,
    read_countries,
)
from scripts.bundled_suite.splits import SPLITS, spread
from scripts.bundled_suite.wordnet import read_wordnet

KINDS = ("country", "city", "element")
MANY_CITIES = 12
AMBIGUOUS = {"lead"}  # an element's name that mostly means something else
NEAR_KM = 40  # nearer to the capital, distance and direction depend on where in the city one measures
SURE = 0.8, 0.5  # of a country's and a city's counted inhabitants: "more than" this holds for years
LEVELS = tuple(digit * 10**power for power in range(4, 10) for digit in (1, 2, 3, 5))


@dataclass(frozen=True, slots=True)
class World:
    """What the tasks are made of.

    Attributes:
        entities: countries, cities and elements by kind and split.
        countries, cities: by country code; `country_split` says where each belongs.
        nouns: by split.
        senses: synsets of each noun of WordNet, the most usual first, to look up kinds and subjects.
        files: the lexicographer file of each synset.
    """

    entities: Mapping[tuple[str, str], Sequence[Entity]]
    countries: Mapping[str, Country]
    cities: Mapping[str, Sequence[City]]
    country_split: Mapping[str, str]
    nouns: Mapping[str, Sequence[Noun]]
    senses: Mapping[str, Sequence[str]]
    files: Mapping[str, str]

    def sense(self, word: str, file: str) -> str:
        """The most usual synset of a noun in a lexicographer file."""
        return next(sense for sense in self.senses[word] if self.files[sense] == file)


def read_world(wordnet: Path) -> World:
    """The world, from the installed packages and a WordNet package file."""
    countries = read_countries()
    cities = read_cities(countries)
    countries = {code: _spelled(country, cities[code]) for code, country in countries.items()}
    elements = read_elements()
    where = _country_splits(countries, cities)
    place = spread([[f"element:{e.name}" for e in group] for group in _families(elements)])
    entities: dict[tuple[str, str], list[Entity]] = {(kind, split): [] for kind in KINDS for split in SPLITS}
    for entity in _places(countries, cities, where):
        entities[entity.kind, entity.split].append(entity)
    for element in elements:
        key = f"element:{element.name}"
        facts = {fact.relation: fact for fact in _element_facts(element)}
        entities["element", place[key]].append(
            Entity(key, "element", element.name, element.name, place[key], (key,), facts)
        )
    names = _proper_names(countries, elements)
    net = read_wordnet(wordnet)
    reserved = names | all_kinds() | {named(kind) for kind in all_kinds()}
    unsaid = {element.name for element in elements} - AMBIGUOUS | {country.name for country in countries.values()}
    nouns = read_nouns(net, reserved, unsaid)
    files = {offset: synset.file for offset, synset in net.synsets.items()}
    return World(entities, countries, cities, where, nouns, net.senses, files)


def _spelled(country: Country, cities: Sequence[City]) -> Country:
    """The country with its capital spelled as among the cities, accents included."""
    city = capital_city(country, cities)
    if city is None or country.code == "US":
        return country
    return replace(country, capital=tuple(dict.fromkeys((city.name, *country.capital))))


def _country_splits(countries: Mapping[str, Country], cities: Mapping[str, Sequence[City]]) -> dict[str, str]:
    strata: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for code, country in countries.items():
        continent = country.continent[0] if country.continent else "between"
        strata[len(cities[code]) >= MANY_CITIES, continent].append(f"country:{code}")
    found = spread(strata[name] for name in sorted(strata))
    return {code: found[f"country:{code}"] for code in countries}


def _families(elements: Sequence[Element]) -> list[list[Element]]:
    """Elements by their state, then their series, so that each split has some of all."""
    strata: dict[tuple[str, str], list[Element]] = defaultdict(list)
    for element in elements:
        strata[element.state or "", element.series or ""].append(element)
    return [strata[name] for name in sorted(strata)]


def _proper_names(countries: Mapping[str, Country], elements: Sequence[Element]) -> set[str]:
    """Names of elements, countries, languages and currencies in lower case: none of them is asked for as a noun."""
    names = {element.name for element in elements}
    for country in countries.values():
        names |= {country.name.lower(), *(name.lower().split()[-1] for name in country.currency)}
        names |= {name.lower() for language in country.languages for name in language}
    return names


def _places(
    countries: Mapping[str, Country], cities: Mapping[str, Sequence[City]], where: Mapping[str, str]
) -> Iterator[Entity]:
    for code, country in countries.items():
        key, split = f"country:{code}", where[code]
        label = f"the {country.name}" if country.article else country.name
        facts = {fact.relation: fact for fact in _country_facts(country)}
        yield Entity(key, "country", label, country.name, split, (key,), facts)
        capital = capital_city(country, cities[code])
        for city in cities[code]:
            facts = {fact.relation: fact for fact in _city_facts(city, country, label, capital)}
            own = f"city:{city.id}"
            yield Entity(own, "city", city.name, city.name, split, (own, key), facts)


def _country_facts(country: Country) -> Iterator[Fact]:
    if country.capital:
        yield Fact("capital", country.capital[0], country.capital)
    if country.currency:
        yield Fact("currency", f"the {country.currency[0]}", country.currency)
    if country.continent:
        yield Fact("continent", country.continent[0], country.continent)
    if country.languages:
        names = tuple(name for language in country.languages for name in language)
        yield Fact("language", names[0], names)
    if country.area:
        size = f"{_rounded(country.area)} square kilometers"
        yield Fact("area", f"about {size}", (size, f"about {size}", _rounded(country.area)), country.area)
    if country.population:
        yield from _population(country.population * SURE[0])
    yield Fact("domain", country.domain, (country.domain, country.domain[1:]))


def _city_facts(city: City, country: Country, label: str, capital: City | None) -> Iterator[Fact]:
    yield Fact("country", label, (country.name, *country.aliases))
    if city.population:
        yield from _population(city.population * SURE[1])
    degrees, side = round(abs(city.latitude)), "north" if city.latitude > 0 else "south"
    if degrees >= 2:
        spot = f"{degrees} degrees {side}"
        yield Fact("latitude", f"about {spot}", (spot, f"about {spot}"), 90 + round(city.latitude))
        yield Fact("equator", side, (side, f"{side} of the equator", f"{side}ern hemisphere", f"{side}ern"))
    if capital is not None and kilometers(capital, city) >= NEAR_KM:
        way = round(kilometers(capital, city), -1)
        text = f"{way:,.0f} kilometers"
        yield Fact("distance", f"about {text}", (text, f"about {text}", f"{way:,.0f} km"), way)
        angle = bearing(capital, city)
        sector = round(angle / 45) % 8
        if abs(angle - 45 * round(angle / 45)) <= 17:  # not on the edge between two directions
            yield Fact("direction", DIRECTIONS[sector], (DIRECTIONS[sector],), 45.0 * sector)


def _element_facts(element: Element) -> Iterator[Fact]:
    yield Fact("symbol", element.symbol, (element.symbol,))
    yield Fact("number", str(element.number), (str(element.number),), element.number)
    yield Fact("period", f"period {element.period}", (f"period {element.period}", str(element.period)))
    if element.group:
        yield Fact("group", f"group {element.group}", (f"group {element.group}", str(element.group)))
    if element.series:
        yield Fact("series", element.series, (element.series.split(" ", 1)[1], element.series))
    if element.block:
        yield Fact("block", f"{element.block}-block", (f"{element.block}-block", element.block))
    if element.state:
        yield Fact("state", f"a {element.state}", (element.state, f"a {element.state}"))
    if element.weight:
        yield Fact(
            "weight", f"about {element.weight}", (str(element.weight), f"about {element.weight}"), element.weight
        )


def _population(sure: float) -> Iterator[Fact]:
    """At least so many inhabitants, as a round number."""
    below = [level for level in LEVELS if level <= sure]
    if below:
        text = f"more than {_words(below[-1])}"
        yield Fact("population", text, (text, _words(below[-1])), below[-1])


def _words(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number // size} {name}"
    return f"{number:,}"


def _rounded(number: int) -> str:
    """Three digits, or one decimal of a million: 357,000 or 1.2 million."""
    if number >= 10**6:
        return f"{number / 10**6:.1f}".removesuffix(".0") + " million"
    step = 10 ** max(0, len(str(number)) - 3)
    return f"{round(number / step) * step:,}"


def capital_is_given_away(country: Country) -> bool:
    """True if the capital's name holds the country's, as Mexico City does."""
    return any(plain(part) in plain(country.name) or plain(country.name) in plain(part) for part in country.capital[:1])
