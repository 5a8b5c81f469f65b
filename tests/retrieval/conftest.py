"""Texts of the bundled suite as a small corpus."""

import json

import pytest

from shoulders.data.lines import read_json_lines
from shoulders.data.readers import bundled_folder

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern", "Cairo", "Hanoi", "Riga", "Accra")


@pytest.fixture(scope="session")
def records() -> list[dict[str, str]]:
    """About 2,500 short texts with titles."""
    found = {}
    for task, field in (
        ("fact_sheets", "context"),
        ("gloss_topics", "definition"),
        ("definition_choice", "definition"),
    ):
        for row in read_json_lines(bundled_folder() / task / "train.jsonl.gz"):
            found.setdefault(row[field], row.get("title", ""))
    return [{"id": str(number), "title": title, "text": text} for number, (text, title) in enumerate(found.items())]


@pytest.fixture(scope="session")
def asked() -> list[str]:
    """Questions that the texts were not written for."""
    rows = read_json_lines(bundled_folder() / "fact_sheets" / "test.jsonl.gz")
    glosses = read_json_lines(bundled_folder() / "gloss_topics" / "test.jsonl.gz")
    return [row["question"] for row in rows][:150] + [row["definition"] for row in glosses][:150]


@pytest.fixture
def lines(tmp_path, records):
    """The corpus as a JSON Lines file."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of ten small text files."""
    made = tmp_path / "cities"
    made.mkdir()
    for city in CITIES:
        (made / f"{city}.txt").write_text(f"{city} is a capital. People of {city} are proud of it.")
    return made


@pytest.fixture
def own(tmp_path):
    """A Milvus of a test's own."""
    from shoulders.retrieval.milvus import Milvus  # an extra

    with Milvus(str(tmp_path / "own.db")) as server:
        yield server
