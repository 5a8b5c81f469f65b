"""Annotated passages as evidence."""

import json

import pytest

from shoulders.errors import UsageError
from shoulders.evidence.base import passage_id
from shoulders.evidence.packing import Packer
from shoulders.evidence.retrieved import Oracle, Retrieved
from shoulders.records import Question
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern")


@pytest.fixture
def retrieved(lm, tmp_path):
    rows = [{"id": f"d{n}", "title": city, "text": f"{city} has {n} parks."} for n, city in enumerate(CITIES)]
    for name, some in (("a.jsonl", rows[:3]), ("b.jsonl", rows[3:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "long.txt").write_text("Word " + "word " * 149)
    build([str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "long.txt")], tmp_path / "index", Cutting())
    return Retrieved(Index(tmp_path / "index"), 4, Packer(lm, 60))


def asked(*gold):
    return Question("How many parks has Rome?", gold=gold)


def test_only_what_is_annotated_is_read(retrieved):
    """By the ids of records, whichever file they are of, and by whole ids; a document may be several passages."""
    source = Oracle(retrieved)
    found = source.find([asked("d4"), asked("d5", "d0"), asked("a.jsonl#d2"), asked("long.txt")])
    titles = [[passage.title for passage in some] for some in found]
    assert titles[:3] == [["Lima"], ["Bern", "Paris"], ["Oslo"]]
    assert [len(passage.text.split()) for passage in found[3]] == [100, 50]
    assert "Lima has 4 parks." in source.write(asked("d4"), found[0]).evidence


def test_distractors_follow_and_are_others(retrieved):
    """Rome is found for its name; as it is annotated, it is not among what follows."""
    found = {count: Oracle(retrieved, count).find([asked("d1"), asked("d4")]) for count in (0, 2)}
    assert [len(some) for some in found[0]] == [1, 1]
    first, second = ([passage.title for passage in some] for some in found[2])
    assert first[0] == "Rome"
    assert second[:2] == ["Lima", "Rome"]
    assert len(first) == len(second) == 3
    assert first.count("Rome") == second.count("Lima") == 1
    packed = Oracle(retrieved, 2).packed(asked("d1"), found[2][0])
    assert packed.passages[0].title == "Rome"
    assert len({Oracle(retrieved, count).fingerprint for count in (0, 2)} | {retrieved.fingerprint}) == 3


def test_questions_without_annotations_are_refused(retrieved):
    with pytest.raises(UsageError, match="no passage is annotated for 'How many parks has Rome"):
        Oracle(retrieved).find([asked("d1"), asked()])
    with pytest.raises(UsageError, match="does not have the documents d9, d10 that are annotated"):
        Oracle(retrieved).find([asked("d9", "d1", "d10")])


def test_one_passage_of_a_document_can_be_annotated(lm, tmp_path):
    """By its number; the id of the document annotates all of its passages."""
    (tmp_path / "long.txt").write_text(" ".join(f"word{n}" for n in range(250)))
    index = Index.build(tmp_path / "long.txt", tmp_path / "index")
    first, second, third = index.store.passages()
    oracle = Oracle(Retrieved(index, 1, Packer(lm, 100)))
    one = Question("What?", gold=(passage_id(second.id),))
    both = Question("What?", gold=(passage_id(third.id), passage_id(first.id)))
    found = oracle.find([one, both])
    assert [[passage.text for passage in some] for some in found] == [[second.text], [third.text, first.text]]
    for unknown in (passage_id(99), "passage:x"):
        with pytest.raises(UsageError, match=f"does not have the documents {unknown}"):
            oracle.find([Question("What?", gold=(unknown,))])
