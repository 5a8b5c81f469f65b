"""How each relation is asked and stated. `{name}` is the entity, `{owner}` its genitive, `{value}` the value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrases:
    """Wordings of one relation of one kind of entity.

    Attributes:
        label: its name in a table.
        questions: differently worded questions for the value.
        sentences: statements that name the entity.
        its: statements that follow such a one.
        verbs: predicates to be joined after the entity's name.
        denials: statements that the value is not so.
        whose: what stands between "whose" and a comma, if it can be said so.
        single: True if an entity has one such value only, so that another value is false.
    """

    label: str
    questions: tuple[str, ...]
    sentences: tuple[str, ...]
    its: tuple[str, ...]
    verbs: tuple[str, ...]
    denials: tuple[str, ...]
    whose: str | None = None
    single: bool = True


COUNTRY = {
    "capital": Phrases(
        "capital",
        (
            "What is the capital of {name}?",
            "Which city is the capital of {name}?",
            "What is {owner} capital city called?",
            "Can you name the city that {name} has as its capital?",
        ),
        ("The capital of {name} is {value}.", "{value} is the capital of {name}.", "{owner} capital city is {value}."),
        ("Its capital is {value}.", "The capital city is called {value}.", "The country has {value} as its capital."),
        ("has {value} as its capital", "has its capital at {value}"),
        ("The capital of {name} is not {value}.", "{value} is not the capital of {name}."),
        "capital is {value}",
    ),
    "currency": Phrases(
        "currency",
        (
            "What is the currency of {name}?",
            "Which currency is used in {name}?",
            "What money do people in {name} pay with?",
            "In what currency are prices given in {name}?",
        ),
        (
            "The currency of {name} is {value}.",
            "In {name}, people pay with {value}.",
            "{name} uses {value} as its currency.",
        ),
        ("Its currency is {value}.", "People there pay with {value}.", "The money used in the country is {value}."),
        ("uses {value} as its currency", "has {value} as its currency"),
        ("The currency of {name} is not {value}.", "{name} does not use {value} as its currency."),
        "currency is {value}",
    ),
    "continent": Phrases(
        "continent",
        (
            "On which continent is {name}?",
            "Which continent is {name} part of?",
            "In what part of the world does {name} lie?",
            "To which of the continents does {name} belong?",
        ),
        ("{name} is a country in {value}.", "{name} is part of {value}.", "{name} lies in {value}."),
        ("The country lies in {value}.", "It is part of {value}."),
        ("is a country in {value}", "lies in {value}"),
        ("{name} is not in {value}.", "{name} is not part of {value}."),
    ),
    "language": Phrases(
        "official language",
        (
            "What is an official language of {name}?",
            "Which language has official status in {name}?",
            "Can you name a language that is official in {name}?",
        ),
        (
            "{value} is an official language of {name}.",
            "In {name}, {value} has the status of an official language.",
            "{name} has {value} as an official language.",
        ),
        ("An official language there is {value}.", "{value} is an official language of the country."),
        ("has {value} as an official language",),
        ("{value} is not an official language of {name}.",),
        single=False,
    ),
    "area": Phrases(
        "approximate area",
        (
            "How large is {name}?",
            "What is the area of {name}?",
            "How many square kilometers does {name} cover?",
            "Over what area does {name} extend?",
        ),
        (
            "{name} covers {value}.",
            "{name} has an area of {value}.",
            "The territory of {name} measures {value}.",
        ),
        ("Its area is {value}.", "The country covers {value}."),
        ("covers {value}", "has an area of {value}"),
        ("{name} does not cover {value}.", "The area of {name} is not {value}."),
        "area is {value}",
    ),
    "population": Phrases(
        "population",
        (
            "How many people live in {name}?",
            "What is the population of {name}?",
            "How many inhabitants does {name} have?",
            "How populous is {name}?",
        ),
        ("{name} has {value} inhabitants.", "{value} people live in {name}.", "{name} is home to {value} people."),
        ("Its population is {value}.", "{value} people live there."),
        ("has {value} inhabitants", "is home to {value} people"),
        ("{name} does not have {value} inhabitants.",),
        single=False,
    ),
    "domain": Phrases(
        "internet domain",
        (
            "What is the internet country code of {name}?",
            "Which top-level domain belongs to {name}?",
            "With which letters do web addresses from {name} usually end?",
            "What is {owner} country domain on the internet?",
        ),
        (
            "Web addresses from {name} often end in {value}.",
            "The internet domain of {name} is {value}.",
            "On the internet, {name} has the country domain {value}.",
        ),
        ("Its internet domain is {value}.", "Web addresses from there often end in {value}."),
        ("has the internet domain {value}", "uses the country domain {value} on the internet"),
        ("The internet domain of {name} is not {value}.", "{value} is not the internet domain of {name}."),
        "internet domain is {value}",
    ),
}

CITY = {
    "country": Phrases(
        "country",
        (
            "In which country is {name}?",
            "Which country does the city of {name} belong to?",
            "{name} is a city in what country?",
            "Where is {name}: in which country?",
        ),
        ("{name} is a city in {value}.", "The city of {name} is in {value}.", "{name} belongs to {value}."),
        ("It is a city in {value}.", "The city belongs to {value}."),
        ("is a city in {value}", "lies in {value}"),
        ("{name} is not in {value}.", "The city of {name} does not belong to {value}."),
    ),
    "population": Phrases(
        "population",
        (
            "How many people live in {name}?",
            "What is the population of {name}?",
            "How many inhabitants does the city of {name} have?",
            "How big is {name}, counted in people?",
        ),
        ("{name} has {value} inhabitants.", "{value} people live in {name}.", "{name} is home to {value} people."),
        ("Its population is {value}.", "{value} people live there."),
        ("has {value} inhabitants", "is home to {value} people"),
        ("{name} does not have {value} inhabitants.",),
        single=False,
    ),
    "latitude": Phrases(
        "latitude",
        (
            "At what latitude is {name}?",
            "What is the latitude of {name}?",
            "How far north or south of the equator does {name} lie, in degrees?",
            "On which degree of latitude would you find {name}?",
        ),
        ("{name} lies at a latitude of {value}.", "The latitude of {name} is {value}.", "{name} is at {value}."),
        ("Its latitude is {value}.", "The city is at {value}."),
        ("is at {value}", "lies at a latitude of {value}"),
        ("The latitude of {name} is not {value}.", "{name} does not lie at {value}."),
        "latitude is {value}",
    ),
    "distance": Phrases(
        "distance from the capital",
        (
            "How far is {name} from the capital of its country?",
            "What is the distance between {name} and the national capital?",
            "How many kilometers lie between {name} and the country's capital?",
            "How long is the straight line from the national capital to {name}?",
        ),
        (
            "{name} is {value} from the capital of its country.",
            "The distance from {name} to the national capital is {value}.",
            "As the crow flies, it is {value} from {name} to the national capital.",
        ),
        ("The national capital is {value} away.", "Its distance from the national capital is {value}."),
        ("is {value} from the national capital", "lies {value} away from the capital of its country"),
        (
            "{name} is not {value} from the capital of its country.",
            "The distance from {name} to the national capital is not {value}.",
        ),
        "distance from the national capital is {value}",
    ),
    "direction": Phrases(
        "direction from the capital",
        (
            "In which direction from the capital of its country does {name} lie?",
            "Seen from the national capital, where is {name}?",
            "Which way does one travel from the country's capital to {name}?",
            "Starting at the national capital, in what direction would you set out for {name}?",
        ),
        (
            "{name} lies {value} of the capital of its country.",
            "Seen from the national capital, {name} is to the {value}.",
            "From the national capital, the way to {name} leads {value}.",
        ),
        ("It lies {value} of the national capital.", "From the national capital, the way there leads {value}."),
        ("lies {value} of the national capital", "is {value} of the capital of its country"),
        (
            "{name} does not lie {value} of the capital of its country.",
            "Seen from the national capital, {name} is not to the {value}.",
        ),
    ),
    "equator": Phrases(
        "hemisphere",
        (
            "Is {name} north or south of the equator?",
            "On which side of the equator does {name} lie?",
            "Which hemisphere is {name} in: the northern or the southern?",
        ),
        (
            "{name} lies {value} of the equator.",
            "{name} is in the {value}ern hemisphere.",
            "The city of {name} is {value} of the equator.",
        ),
        ("It lies {value} of the equator.", "The city is in the {value}ern hemisphere."),
        ("lies {value} of the equator", "is in the {value}ern hemisphere"),
        ("{name} does not lie {value} of the equator.", "{name} is not in the {value}ern hemisphere."),
    ),
}

ELEMENT = {
    "symbol": Phrases(
        "symbol",
        (
            "What is the chemical symbol for {name}?",
            "How is {name} abbreviated in chemical formulas?",
            "Which letters stand for {name} in the periodic table?",
            "By what symbol do chemists write {name}?",
        ),
        (
            "The chemical symbol for {name} is {value}.",
            "In formulas, {name} is written {value}.",
            "Chemists write {name} as {value}.",
        ),
        ("Its symbol is {value}.", "In formulas it is written {value}."),
        ("has the chemical symbol {value}", "is written {value} in formulas"),
        ("The chemical symbol for {name} is not {value}.", "In formulas, {name} is not written {value}."),
        "symbol is {value}",
    ),
    "number": Phrases(
        "atomic number",
        (
            "What is the atomic number of {name}?",
            "How many protons does an atom of {name} have?",
            "Which number does {name} have in the periodic table?",
            "What is the count of protons in a nucleus of {name}?",
        ),
        (
            "The atomic number of {name} is {value}.",
            "{name} is element number {value} of the periodic table.",
            "An atom of {name} has {value} protons.",
        ),
        ("Its atomic number is {value}.", "Each of its atoms has {value} protons."),
        ("has the atomic number {value}", "is element number {value}"),
        ("The atomic number of {name} is not {value}.", "{name} is not element number {value}."),
        "atomic number is {value}",
    ),
    "period": Phrases(
        "period",
        (
            "In which period of the periodic table is {name}?",
            "To what period does {name} belong?",
            "Which row of the periodic table holds {name}?",
        ),
        (
            "{name} stands in {value} of the periodic table.",
            "In the periodic table, {name} belongs to {value}.",
        ),
        ("It stands in {value} of the periodic table.", "In the periodic table, it belongs to {value}."),
        ("stands in {value} of the periodic table", "belongs to {value}"),
        ("{name} does not stand in {value} of the periodic table.",),
    ),
    "group": Phrases(
        "group",
        (
            "In which group of the periodic table is {name}?",
            "What group does {name} belong to?",
            "Which column of the periodic table holds {name}?",
        ),
        (
            "{name} stands in {value} of the periodic table.",
            "In the periodic table, {name} is a member of {value}.",
        ),
        ("It is in {value} of the periodic table.", "In the periodic table, it is a member of {value}."),
        ("is in {value} of the periodic table", "is a member of {value}"),
        ("{name} is not in {value} of the periodic table.",),
    ),
    "series": Phrases(
        "family",
        (
            "What kind of element is {name}?",
            "Which family of elements does {name} belong to?",
            "How do chemists classify {name}?",
        ),
        ("{name} is {value}.", "Chemists class {name} as {value}.", "The element {name} is {value}."),
        ("It is {value}.", "Chemists class it as {value}."),
        ("is {value}", "counts as {value}"),
        ("{name} is not {value}.",),
    ),
    "block": Phrases(
        "block",
        (
            "In which block of the periodic table is {name}?",
            "Which block does {name} belong to?",
            "Which of the blocks s, p, d and f holds {name}?",
        ),
        ("{name} belongs to the {value} of the periodic table.", "The periodic table has {name} in its {value}."),
        ("It belongs to the {value}.", "The periodic table has it in the {value}."),
        ("belongs to the {value}", "is in the {value} of the periodic table"),
        ("{name} does not belong to the {value} of the periodic table.",),
    ),
    "state": Phrases(
        "state at room temperature",
        (
            "What state of matter is {name} in at room temperature?",
            "Is {name} a solid, a liquid or a gas at room temperature?",
            "In what form does {name} occur at ordinary temperatures: solid, liquid or gas?",
        ),
        ("At room temperature, {name} is {value}.", "{name} is {value} under ordinary conditions."),
        ("At room temperature it is {value}.", "Under ordinary conditions, it is {value}."),
        ("is {value} at room temperature", "is {value} under ordinary conditions"),
        ("At room temperature, {name} is not {value}.", "{name} is not {value} under ordinary conditions."),
    ),
    "weight": Phrases(
        "atomic weight",
        (
            "What is the atomic weight of {name}?",
            "How heavy are atoms of {name} on average, in atomic mass units?",
            "Which standard atomic weight does {name} have?",
        ),
        ("The atomic weight of {name} is {value}.", "{name} has an atomic weight of {value}."),
        ("Its atomic weight is {value}.", "The atoms weigh {value} atomic mass units."),
        ("has an atomic weight of {value}",),
        ("The atomic weight of {name} is not {value}.",),
        "atomic weight is {value}",
    ),
}

PHRASES = {"country": COUNTRY, "city": CITY, "element": ELEMENT}

# What follows from what by knowledge of the world: none of these counts as unsaid when another is said, and one text
# does not state two of them.
TIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "country": (),
    "city": (("latitude", "equator"),),
    "element": (("group", "series", "block"), ("series", "state")),
}


def tied(kind: str, one: str, other: str) -> bool:
    """True if one relation of such an entity says something about the other."""
    return any(one in group and other in group for group in TIED[kind])
