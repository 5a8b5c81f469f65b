"""`shoulders ask`."""

import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoulders.adaptive.storage import is_adaptive, read
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import origin_of
from shoulders.cli.show import console, counted_passes, errors, notes, quiet_libraries, say, short
from shoulders.data.evidence import Evidence, Passage
from shoulders.data.packing import PackedEvidence
from shoulders.data.questions import QA, in_wording
from shoulders.errors import SourceNotFound, UsageError
from shoulders.pipeline import Answering, answer, choose
from shoulders.recipes.adaptive import stage_named
from shoulders.recipes.folders import scaffold_folder
from shoulders.records import Question
from shoulders.scaffolds.base import Scaffold

AUTO = "auto"
Ask = Callable[[Question], tuple[str, int]]  # the answer, and the passes that are to be told; 0 for none


@dataclass(frozen=True, slots=True)
class Request:
    """How questions are asked."""

    backbone: str | None = None
    choices: str = ""
    context: Path | None = None
    longest: int = 64
    truncate: bool = False
    passes: str = ""  # through the frozen model: a number, or "auto"

    def __post_init__(self) -> None:
        if self.passes not in ("", AUTO) and not (self.passes.isdecimal() and int(self.passes)):
            raise UsageError(f"--passes {self.passes} is no number of passes: --passes {AUTO}, or 1, 2, ...")
        if self.choices and not self.options:
            raise UsageError(f"--choices {self.choices!r} names no answer: put '|' between answers, 'yes|no'")
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
    name = scaffold_folder(name)
    ask = (_cascade if is_adaptive(name) else _scaffold)(name, request)
    evidence = _read(request.context)
    failed = 0
    for text in questions or typed():
        try:
            answered, passes = ask(Question(text, evidence))
        except UsageError as error:
            if len(questions) == 1:
                raise
            failed += 1
            errors.print(f"{textwrap.shorten(text, 60)}\n  error: {error}", markup=False, emoji=False, soft_wrap=True)
        else:
            say(answered if len(questions) < 2 else f"{text}\n  {answered}")
            if passes:
                notes.print(counted_passes(passes))
    if failed:
        raise UsageError(f"not answered: {failed} of the questions (why is said above)")


def _scaffold(name: str, request: Request) -> Ask:
    """A scaffold, or the bare model; its passes are told where they were asked for."""
    origin = origin_of(name)
    backbone = request.backbone or (origin.backbone if origin else None)
    if backbone is None:
        raise UsageError("the bare model has no scaffold to name its backbone: add --backbone NAME")
    if request.passes == AUTO:
        raise UsageError(
            f"--passes {AUTO} needs thresholds, and {name} is one scaffold: calibrate several first (shoulders "
            f"calibrate {name} RUN --budget 1.5) and ask what that writes"
        )
    lm = FrozenLM.load(backbone)
    stage = stage_named(name, lm)
    if request.passes and int(request.passes) != stage.passes:
        raise UsageError(
            f"--passes {request.passes}: {name} answers with {counted_passes(stage.passes)}, always: leave --passes "
            "out, or name another scaffold"
        )

    recipe = origin.recipe if origin else {}

    def ask(question: Question) -> tuple[str, int]:
        question = _as_trained(question, recipe)
        if stage.evidence:
            found = stage.evidence.find([question])[0]
            question = _shown_with(question, found, stage.evidence)
        return one_answer(question, lm, stage.scaffold, request), stage.passes if request.passes else 0

    return ask


def _as_trained(question: Question, recipe: Mapping[str, Any]) -> Question:
    """In the wording of files of questions, where those were trained on."""
    of_files = recipe.get("suite", {}).get("source", "").startswith(QA)
    return replace(question, text=in_wording(question.text)) if of_files else question


def _shown_with(question: Question, found: Sequence[Passage], evidence: Evidence) -> Question:
    """The question with its evidence, which is told: titles of the passages that are read, or the candidates."""
    if isinstance(evidence, PackedEvidence):
        packed = evidence.packed(question, found)
        told = [f"{short(passage.title or passage.text)} ({passage.score:.2f})" for passage in packed.passages]
        notes.print("\n".join(told) or "no passage is read", markup=False, highlight=False, soft_wrap=True)
        return packed.question
    notes.print("; ".join(passage.text for passage in found), markup=False, highlight=False)
    return evidence.write(question, found)


def _cascade(name: str, request: Request) -> Ask:
    """A calibrated cascade, or one of its stages asked by itself."""
    stored = read(Path(name))
    lm = FrozenLM.load(request.backbone or stored.backbone)
    adaptive = stored.load(lm, stage_named)
    if request.passes not in ("", AUTO):
        adaptive = adaptive.only(int(request.passes))
    how = Answering(request.longest, request.truncate)

    def ask(question: Question) -> tuple[str, int]:
        question = _as_trained(question, stored.calibration.recipe)
        if request.choices:
            found = adaptive.chosen([question], [request.options], lm, how)[0]
        else:
            found = adaptive.answered([question], lm, how)[0]
        return found.answer.text, found.passes

    return ask


def one_answer(question: Question, lm: FrozenLM, scaffold: Scaffold, request: Request) -> str:
    """The generated answer, or the most likely of the choices."""
    how = Answering(request.longest, request.truncate)
    if not request.choices:
        return answer([question], lm, scaffold, how)[0]
    return choose([question], [request.options], lm, scaffold, how)[0].text


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
    return line


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip() + "\n\n"
    except (OSError, UnicodeDecodeError) as error:
        raise SourceNotFound(f"cannot read {path}: {error}") from error
