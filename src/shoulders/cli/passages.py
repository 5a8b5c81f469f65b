"""What `shoulders ask` shows of an answer that was read in passages."""

from collections.abc import Iterator

from rich.text import Text

from shoulders.cli.show import harmless, short
from shoulders.records import Answer

NO_ANSWER = "no answer"


def said(found: Answer) -> str:
    """The answer, or that there is none."""
    return NO_ANSWER if found.answer is None else harmless(found.answer)


def shown(found: Answer) -> Iterator[Text]:
    """The passages that were read, best first; the answer in its passage; how sure the model was; what was not read."""
    places = found.places
    last = max(places, default=0)
    for rank, passage in enumerate(found.passages[:last], start=1):
        number = places.get(rank)
        head = f"{rank:3}  {passage.score:7.3f}  {'read' if rank in places else 'too long'}  "
        yield Text.assemble(head, (harmless(short(passage.title or passage.text)), "bold"))
        if found.support and found.passage and number == found.support.number:
            text = Text(harmless(found.passage.text))
            text.stylize("bold green", found.support.start, found.support.end)
            yield Text.assemble("     ", text)
    if more := len(found.passages) - last:
        yield Text(f"{more} more found and not read (of at most {found.passages[last].score:.3f})")
    yield Text(_told(found))


def _told(found: Answer) -> str:
    """Where the answer stands, and how sure the model was of it."""
    sure = f"probability {found.probability:.3f}"
    if not found.text:
        return f"the model says nothing; {sure}"
    if found.answer is None:
        needs = "none such is given" if found.least > 1 else f"it must be {found.least:.3f}"
        sure = f"{harmless(short(found.text))!r} is not sure enough: {sure}, {needs}"
    if found.support is None or found.passage is None:
        where = (
            f"in none of the {len(found.read)} passages that were read" if len(found.read) else "no passage was read"
        )
        return f"the answer is not in the evidence ({where}); {sure}"
    start, end = found.support.start, found.support.end
    title = harmless(short(found.passage.title))
    called = f", {title}," if title else ""
    return (
        f"in passage {found.support.number + 1} of {len(found.read)} read{called} characters {start} to {end}; {sure}"
    )
