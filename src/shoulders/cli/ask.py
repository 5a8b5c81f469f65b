"""`shoulders ask`."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import BARE, origin_of
from shoulders.cli.show import console, errors, quiet_libraries, say
from shoulders.errors import SourceNotFound, UsageError
from shoulders.pipeline import Answering, answer, rank
from shoulders.recipes.folders import scaffold_folder
from shoulders.records import Question
from shoulders.scaffolds.base import Bare, Scaffold


@dataclass(frozen=True, slots=True)
class Request:
    """How questions are asked."""

    backbone: str | None = None
    choices: str = ""
    context: Path | None = None
    longest: int = 64
    truncate: bool = False

    def __post_init__(self) -> None:
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
    origin = origin_of(name)
    backbone = request.backbone or (origin.backbone if origin else None)
    if backbone is None:
        raise UsageError("the bare model has no scaffold to name its backbone: add --backbone NAME")
    lm = FrozenLM.load(backbone)
    scaffold = Bare() if name == BARE else Scaffold.load(name, lm)
    evidence = _read(request.context)
    failed = 0
    for text in questions or typed():
        try:
            answered = one_answer(Question(text, evidence), lm, scaffold, request)
        except UsageError as error:
            if len(questions) == 1:
                raise
            failed += 1
            errors.print(f"{textwrap.shorten(text, 60)}\n  error: {error}", markup=False, emoji=False, soft_wrap=True)
        else:
            say(answered if len(questions) < 2 else f"{text}\n  {answered}")
    if failed:
        raise UsageError(f"not answered: {failed} of the questions (why is said above)")


def one_answer(question: Question, lm: FrozenLM, scaffold: Scaffold, request: Request) -> str:
    """The generated answer, or the most likely of the choices."""
    how = Answering(request.longest, request.truncate)
    if not request.choices:
        return answer([question], lm, scaffold, how)[0]
    scores = rank([question], [request.options], lm, scaffold, how)[0]
    return request.options[scores.index(max(scores))]


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
