"""Sentences that errors share: the nearest known name, and a value that does not fit."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from shoulders.errors import UnknownName, misfit, nearest


@dataclass
class Pet:
    name: str
    legs: int = 4


@dataclass
class Place:
    city: str
    land: str


PET = {"name": "a"}


@pytest.mark.parametrize(
    ("name", "known", "wanted"),
    [
        ("sufix", ["prefix", "suffix"], "suffix"),
        ("rouge", ["BLEU", "ROUGE", "rouge_l"], "ROUGE"),
        ("Acuracy", ["accuracy", "Accuracy"], "Accuracy"),
        ("xyz", ["prefix", "suffix"], None),
        ("a", [], None),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case(name, known, wanted):
    assert nearest(name, known) == wanted
    said = str(UnknownName("thing", name, known))
    assert said.endswith(f"did you mean {wanted!r}?" if wanted else f"known: {', '.join(known)}")
    assert nearest(name, known, cutoff=1.0) == (wanted if wanted and wanted.casefold() == name.casefold() else None)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (int, "three", "k takes a whole number, got 'three'"),
        (int, 1.5, "k takes a whole number, got 1.5"),
        (int, None, "k takes a whole number, got None"),
        (int, float("inf"), "k takes a finite number, got inf"),
        (float, "x", "k takes a number, got 'x'"),
        (bool, "maybe", "k takes yes or no, got 'maybe'"),
        (str, 3, "k takes a text, got 3"),
        (Literal["a", "b"], "c", "k takes 'a' or 'b', got 'c'"),
        (int | Literal["auto"], "many", "k takes a whole number or 'auto', got 'many'"),
        (int | None, "x", "k takes a whole number, got 'x'"),
        (tuple[str, ...], 3, "k takes a list, got 3"),
        (tuple[float, float], ["1", "x"], "k takes a number in place 2, got 'x'"),
        (tuple[float, float], ["1"], "k lacks a value in place 2"),
        (tuple[float, float], [1, 2, 3], "k takes a length of at most 2, got [1, 2, 3]"),
        (dict[str, int], "x", "k takes a record, got 'x'"),
        (dict[str, int], {"a": "b"}, "k.a takes a whole number, got 'b'"),
        (Pet, 3, "k takes a record, got 3"),
        (Pet, {"legs": 3}, "k.name lacks a value"),
        (Place, {}, "k.city lacks a value"),
        (tuple[Pet, ...], [PET, {"name": "b", "legs": "x"}], "k.legs takes a whole number in place 2, got 'x'"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_told_in_one_sentence(kind: Any, value, said):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert misfit("k", caught.value.errors()) == said
    assert len(misfit("", [{**caught.value.errors()[0], "input": "x" * 9999}])) < 200
