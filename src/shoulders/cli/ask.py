"""`shoulders ask`."""

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoulders.adaptive.stages import Stage
from shoulders.adaptive.storage import is_adaptive, read
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli import passages
from shoulders.cli.show import console, counted_passes, errors, notes, quiet_libraries, say
from shoulders.data.questions import in_wording
from shoulders.decoding import decode_whole
from shoulders.errors import DataError, SourceNotFound, UsageError
from shoulders.pipeline import Answering, answer, choose
from shoulders.recipes.adaptive import stage_named
from shoulders.recipes.evidence import evidence_of
from shoulders.recipes.named import Named
from shoulders.recipes.reading import LONGEST, ReadAnswer, Reader, in_files, reads_passages
from shoulders.records import Question
from shoulders.scaffolds.base import Scaffold

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of one question.

    Attributes:
        text: the answer.
        passes: through the frozen model, where they are to be told.
        candidates: that the model had to choose from.
        read: the answer with its passages, where there are any.
    """

    text: str
    passes: int = 0
    candidates: tuple[str, ...] = ()
    read: ReadAnswer | None = None

    def as_json(self, question: str) -> dict[str, Any]:
        """The same for machines."""
        passes = {"passes": self.passes} if self.passes else {}
        candidates = {"candidates": self.candidates} if self.candidates else {}
        answer = passages.as_json(question, self.read) if self.read else {"question": question, "answer": self.text}
        return {**answer, **candidates, **passes}


Ask = Callable[[Question], Told]


@dataclass(frozen=True, slots=True)
class Request:
    """How questions are asked."""

    backbone: str | None = None
    choices: str = ""
    context: Path | None = None
    longest: int | None = None  # tokens of an answer; None: as a reader is measured, else LONGEST
    truncate: bool = False
    passes: str = ""  # through the frozen model: a number, or "auto"
    index: str = ""  # of passages to read; empty: that of the recipe, if it has one
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.passes not in ("", AUTO) and not (self.passes.isdecimal() and int(self.passes)):
            raise UsageError(f"--passes {self.passes} is no number of passes: --passes {AUTO}, or 1, 2, ...")
        if self.choices and not self.options:
            raise UsageError(f"--choices {self.choices!r} names no answer: put '|' between answers, 'yes|no'")
        _ = self.how  # refuses what is no length, before a model is loaded

    @property
    def options(self) -> list[str]:
        """The answers to choose from."""
        return [choice.strip() for choice in self.choices.split("|") if choice.strip()]

    @property
    def how(self) -> Answering:
        """How answers are generated."""
        return Answering(LONGEST if self.longest is None else self.longest, self.truncate)


def run(name: str, questions: Sequence[str], request: Request) -> None:
    """Answer the questions given, else those typed or piped in.

    Raises:
        UsageError: a question could not be answered; of several, the others are answered before it is raised.
    """
    quiet_libraries()
    ask = _cascade(name, request) if is_adaptive(name) else _one(Named.of(name), request)
    evidence = _read(request.context)
    failed = 0
    for text in questions or typed():
        try:
            told = ask(Question(text, evidence))
        except UsageError as error:
            if len(questions) == 1:
                raise
            failed += 1
            errors.print(f"{textwrap.shorten(text, 60)}\n  error: {error}", markup=False, emoji=False, soft_wrap=True)
        else:
            _tell(text, told, request, several=len(questions) > 1)
    if failed:
        raise UsageError(f"not answered: {failed} of the questions (why is said above)")


def _tell(question: str, told: Told, request: Request, *, several: bool) -> None:
    """The answer on standard output, what it comes from beside it."""
    if request.as_json:
        say(json.dumps(told.as_json(question)))
        return
    if told.read:
        for line in passages.shown(told.read):
            notes.print(line, soft_wrap=True)
    if told.candidates:
        notes.print("; ".join(told.candidates), markup=False, highlight=False)
    say(f"{question}\n  {told.text}" if several else told.text)
    if told.passes:
        notes.print(counted_passes(told.passes))


def _one(named: Named, request: Request) -> Ask:
    """A scaffold, a rival, or the bare model; its passes are told where they were asked for."""
    name = named.name
    backbone = request.backbone or (named.origin.backbone if named.origin else None)
    if backbone is None:
        raise UsageError("the bare model has no scaffold to name its backbone: add --backbone NAME")
    if request.passes == AUTO:
        raise UsageError(
            f"--passes {AUTO} needs thresholds, and {name} is one scaffold: calibrate several first (shoulders "
            f"calibrate {name} RUN --budget 1.5) and ask what that writes"
        )
    lm = FrozenLM.load(backbone)
    if request.index or reads_passages(named.recipe):
        reader = Reader.load(name, request.index, lm, request.longest, truncate=request.truncate)
        return _reader(reader, name, request)
    found = named.around(lm)
    evidence = evidence_of(named.recipe, lm, found.scaffold.length)
    told = _passes(name, Stage.of(found.scaffold, name, evidence).passes, request)

    def ask(question: Question) -> Told:
        question = replace(question, text=in_wording(question.text)) if in_files(named.recipe) else question
        candidates: tuple[str, ...] = ()
        if evidence:
            several = evidence.find([question])[0]
            candidates = tuple(passage.text for passage in several)
            question = evidence.write(question, several)
        return Told(one_answer(question, found.lm, found.scaffold, request), told, candidates)

    return ask


def _reader(reader: Reader, name: str, request: Request) -> Ask:
    """What reads passages."""
    if reader.doubt:
        notes.print(f"note: {reader.doubt}", markup=False, soft_wrap=True)
    told = _passes(name, reader.scaffold.passes, request)

    def ask(question: Question) -> Told:
        found = reader.ask(question, request.options)
        return Told(passages.said(found), told, read=found)

    return ask


def _passes(name: str, passes: int, request: Request) -> int:
    """The passes of a scaffold that are to be told: those that were asked for, which must be its own."""
    if request.passes and int(request.passes) != passes:
        raise UsageError(
            f"--passes {request.passes}: {name} answers with {counted_passes(passes)}, always: leave --passes "
            "out, or name another scaffold"
        )
    return passes if request.passes else 0


def _cascade(name: str, request: Request) -> Ask:
    """A calibrated cascade, or one of its stages asked by itself."""
    if request.index:
        raise UsageError(
            f"--index goes with one scaffold, and {name} is several: name a run (shoulders ask RUN --index)"
        )
    stored = read(Path(name))
    lm = FrozenLM.load(request.backbone or stored.backbone)
    adaptive = stored.load(lm, stage_named)
    if request.passes not in ("", AUTO):
        adaptive = adaptive.only(int(request.passes))
    worded = in_files(stored.calibration.recipe)

    def ask(question: Question) -> Told:
        question = replace(question, text=in_wording(question.text)) if worded else question
        if request.choices:
            found = adaptive.chosen([question], [request.options], lm, request.how)[0]
        else:
            found = adaptive.answered([question], lm, request.how)[0]
        return Told(found.answer.text, found.passes)

    return ask


def one_answer(question: Question, lm: FrozenLM, scaffold: Scaffold, request: Request) -> str:
    """The generated answer, or the most likely of the choices."""
    if not request.choices:
        return answer([question], lm, scaffold, request.how)[0]
    return choose([question], [request.options], lm, scaffold, request.how)[0].text


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
