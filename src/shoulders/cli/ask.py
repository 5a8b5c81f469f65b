"""`shoulders ask`, and what it shows of an answer that was read in passages."""

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from shoulders.answering import open as open_answerer
from shoulders.answering.answerer import Answerer, ModelAnswerer
from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.stages import is_adaptive
from shoulders.cli.show import console, counted_passes, errors, harmless, notes, quiet_libraries, say, short
from shoulders.engine.inference import Answering
from shoulders.errors import DataError, SourceNotFound, UsageError
from shoulders.records import Answer, Question
from shoulders.scaffolds.storage import scaffold_folder
from shoulders.store.encodings import decode_whole

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


AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Request:
    """How questions are asked."""

    backbone: str | None = None
    choices: str = ""
    context: Path | None = None
    longest: int | None = None  # tokens of an answer; None: as the model was measured
    truncate: bool = False
    passes: str = ""  # through the frozen model: a number, or "auto"
    index: str = ""  # of passages to read; empty: that of the recipe, if it has one
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.passes not in ("", AUTO) and not (self.passes.isdecimal() and int(self.passes)):
            raise UsageError(f"--passes {self.passes} is no number of passes: --passes {AUTO}, or 1, 2, ...")
        if self.choices and not self.options:
            raise UsageError(f"--choices {self.choices!r} names no answer: put '|' between answers, 'yes|no'")
        if self.longest is not None:
            Answering(self.longest)  # refuses what is no length, before a model is loaded

    @property
    def options(self) -> list[str]:
        """The answers to choose from."""
        return [choice.strip() for choice in self.choices.split("|") if choice.strip()]


def run(name: str, questions: Sequence[str], request: Request) -> None:
    """Answer the questions given, else those typed or piped in.

    Raises:
        UsageError: a question could not be answered; of several, the others are answered before it is raised.
    """
    quiet_libraries()
    answerer = _opened(name, request)
    evidence = _read(request.context)
    failed = 0
    for text in questions or typed():
        try:
            answer = answerer.ask(Question(text, evidence), request.options)
        except UsageError as error:
            if len(questions) == 1:
                raise
            failed += 1
            errors.print(f"{textwrap.shorten(text, 60)}\n  error: {error}", markup=False, emoji=False, soft_wrap=True)
        else:
            _tell(text, answer, answerer, request, several=len(questions) > 1)
    if failed:
        raise UsageError(f"not answered: {failed} of the questions (why is said above)")


def _opened(name: str, request: Request) -> Answerer:
    """Open what is asked, with as many passes as were asked for."""
    if request.passes == AUTO and not is_adaptive(name):
        place = scaffold_folder(name)
        raise UsageError(
            f"--passes {AUTO} needs thresholds, and {place} is one scaffold: calibrate several first (shoulders "
            f"calibrate {place} RUN --budget 1.5) and ask what that writes"
        )
    answerer = open_answerer(
        name,
        backbone=request.backbone,
        index=request.index,
        longest=request.longest,
        truncate=request.truncate,
    )
    if isinstance(answerer, CascadeAnswerer):
        return answerer if request.passes in ("", AUTO) else answerer.only(int(request.passes))
    if isinstance(answerer, ModelAnswerer):
        if request.passes and int(request.passes) != answerer.passes:
            raise UsageError(
                f"--passes {request.passes}: {scaffold_folder(name)} answers with {counted_passes(answerer.passes)}, "
                "always: leave --passes out, or name another scaffold"
            )
        if answerer.doubt:
            notes.print(f"note: {answerer.doubt}", markup=False, soft_wrap=True)
    return answerer


def _tell(question: str, answer: Answer, answerer: Answerer, request: Request, *, several: bool) -> None:
    """Write the answer on standard output, and what it comes from beside it."""
    if request.as_json:
        say(json.dumps({"question": question, **answer.as_json()}))
        return
    if answerer.reads_passages:
        for line in shown(answer):
            notes.print(line, soft_wrap=True)
    if answer.candidates:
        notes.print("; ".join(one.text for one in answer.candidates), markup=False, highlight=False)
    text = said(answer) if answerer.reads_passages else answer.text
    say(f"{question}\n  {text}" if several else text)
    if request.passes or isinstance(answerer, CascadeAnswerer):
        notes.print(counted_passes(answer.passes))


def typed() -> Iterator[str]:
    """Questions from the keyboard until an empty line, or from a pipe, one a line.

    Raises:
        UsageError: there is no standard input, or what comes out of it is not UTF-8.
    """
    if sys.stdin is None:
        raise UsageError("there is no question, and standard input is closed: type one after the scaffold's name")
    at_keyboard = sys.stdin.isatty()
    if at_keyboard:
        console.print("Ask a question (an empty line ends):", style="dim")
    while True:
        if at_keyboard:
            console.print("? ", end="", style="bold")
        line = _line()
        if not line or (at_keyboard and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def _line() -> str:
    try:
        line = sys.stdin.readline()
        line.encode()  # where the locale is C, Python passes other bytes on as surrogates
    except UnicodeError as error:
        raise UsageError(f"what is piped in is not UTF-8 ({error}): convert it first (iconv -t utf-8)") from error
    return line.removeprefix("\ufeff")


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return decode_whole(path.read_bytes()).strip() + "\n\n"
    except (OSError, DataError) as error:
        raise SourceNotFound(f"cannot read {path}: {error}") from error
