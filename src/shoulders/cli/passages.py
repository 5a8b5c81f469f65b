"""What `shoulders ask` shows of an answer that was read in passages."""

import math
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from shoulders.cli.show import harmless, short
from shoulders.recipes.reading import ReadAnswer
from shoulders.records import Passage

NO_ANSWER = "no answer"


def said(found: ReadAnswer) -> str:
    """The answer, or that there is none."""
    return NO_ANSWER if found.answer is None else harmless(found.answer)


def shown(found: ReadAnswer) -> Iterator[Text]:
    """The passages that were read, best first; the answer in its passage; how sure the model was; what was not read."""
    places = _read(found)
    last = max(places, default=0)
    for rank, passage in enumerate(found.found[:last], start=1):
        number = places.get(rank)
        head = f"{rank:3}  {passage.score:7.3f}  {'read' if rank in places else 'too long'}  "
        yield Text.assemble(head, (harmless(short(passage.title or passage.text)), "bold"))
        if found.support and found.passage and number == found.support.number:
            text = Text(harmless(found.passage.text))
            text.stylize("bold green", found.support.start, found.support.end)
            yield Text.assemble("     ", text)
    if more := len(found.found) - last:
        yield Text(f"{more} more found and not read (of at most {found.found[last].score:.3f})")
    yield Text(_told(found))


def as_json(question: str, found: ReadAnswer) -> dict[str, Any]:
    """The same for machines."""
    places = _read(found)
    return {
        "question": question,
        "answer": found.answer,
        "said": found.text,
        "confidence": found.confidence,
        "least": found.least if math.isfinite(found.least) else None,
        "passage": found.passage and _passage_as_json(found.passage),
        "span": found.span,
        "packed": found.packed,
        "passages": [
            {**_passage_as_json(passage), "read": rank in places} for rank, passage in enumerate(found.found, start=1)
        ],
    }


def _read(found: ReadAnswer) -> dict[int, int]:
    """By rank of what was found, its number among what was read: in the same order, and the last one may be cut."""
    places: dict[int, int] = {}
    for rank, passage in enumerate(found.found, start=1):
        if len(places) < found.packed and _begins(passage, found.read[len(places)]):
            places[rank] = len(places)
    return places


def _begins(passage: Passage, read: Passage) -> bool:
    return passage.title == read.title and passage.text.startswith(read.text)


def _told(found: ReadAnswer) -> str:
    """Where the answer stands, and how sure the model was of it."""
    sure = f"probability {found.confidence:.3f}"
    if not found.text:
        return f"the model says nothing; {sure}"
    if found.answer is None:
        needs = "none such is given" if found.least > 1 else f"it must be {found.least:.3f}"
        sure = f"{harmless(short(found.text))!r} is not sure enough: {sure}, {needs}"
    if found.support is None or found.passage is None:
        where = f"in none of the {found.packed} passages that were read" if found.packed else "no passage was read"
        return f"the answer is not in the evidence ({where}); {sure}"
    start, end = found.support.start, found.support.end
    title = harmless(short(found.passage.title))
    called = f", {title}," if title else ""
    return f"in passage {found.support.number + 1} of {found.packed} read{called} characters {start} to {end}; {sure}"


def _passage_as_json(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "text": passage.text, "score": passage.score}
