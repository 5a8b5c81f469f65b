"""`shoulders ask`: answers to questions, and the passages that they come from."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from shoulders.cli.show import (
    console,
    counted_passes,
    error_console,
    harmless,
    notes,
    quiet_libraries,
    say,
    short,
)
from shoulders.errors import DataError, SourceNotFound, UsageError

if TYPE_CHECKING:
    from shoulders.answering.answerer import Answerer
    from shoulders.records import Answer

NO_ANSWER = "no answer"
AUTO = "auto"


def ask(  # noqa: PLR0913, PLR0917 (one for each option)
    scaffold: Annotated[
        str, typer.Argument(help="folder of a run, a scaffold or a rival, a hub name, or 'bare' for the frozen model")
    ],
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help="questions; without any, type them in or pipe them in, one on each line", show_default=False
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="name or folder of the frozen model [default: the one named in the scaffold]")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="rank these answers instead of generating one: 'yes|no|maybe'")
    ] = None,
    context: Annotated[Path | None, typer.Option(help="text file to read before each question")] = None,
    longest: Annotated[
        int | None,
        typer.Option(help="largest number of tokens of an answer [default: as when it was measured, or else 64]"),
    ] = None,
    truncate: Annotated[bool, typer.Option(help="cut inputs that are too long instead of refusing them")] = False,
    passes: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="for the output of `shoulders calibrate`: 'auto' for as many passes through the frozen model as each "
            "question needs, or N to ask only its most expensive run of at most N passes [default: auto]",
        ),
    ] = "",
    index: Annotated[
        str, typer.Option(help="folder of the index to read passages from [default: the recipe's index, if any]")
    ] = "",
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="ask through the model's chat template, or as plain text [default: as it was trained; bare: no]",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="system text of the conversation, with the chat template")] = "",
    quantize: Annotated[
        str | None,
        typer.Option(help="quantise the frozen model: nf4, int8, or '' not at all [default: as in training]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object for each question")] = False,
) -> None:
    """Answer questions with a trained scaffold, or with several that `shoulders calibrate` put in order of cost.

    With `--index`, or a scaffold trained to read passages, each answer is printed with the passages that were read and
    the place where the answer stands in them. "no answer" is printed if the model is less sure than the threshold that
    `shoulders threshold` chose.

    Example: `shoulders ask runs/first "What is the capital of France?"`
    """
    import json

    from shoulders.answering.cascade import CascadeAnswerer
    from shoulders.engine.inference import Answering
    from shoulders.records import Question

    options = _options(choices)
    _check_passes(passes)
    if longest is not None:
        Answering(longest)  # refuses an impossible length before a model is loaded
    how = {"backbone": backbone, "index": index, "longest": longest, "truncate": truncate, "quantize": quantize}
    how["chat"] = _conversation(system, chat=chat)
    quiet_libraries()
    answerer = _open(scaffold, passes, **how)
    evidence = _read_context(context)
    questions, failed = question or [], 0
    for text in questions or typed_questions():
        try:
            answer = answerer.ask(Question(text, evidence), options)
        except UsageError as error:
            if len(questions) == 1:
                raise
            failed += 1
            shown = f"{textwrap.shorten(text, 60)}\n  error: {error}"
            error_console.print(shown, markup=False, emoji=False, soft_wrap=True)
            continue
        if as_json:
            say(json.dumps({"question": text, **answer.as_json()}))
            continue
        _print_answer(f"{text}\n  " if len(questions) > 1 else "", answer, reads_passages=answerer.reads_passages)
        if passes or isinstance(answerer, CascadeAnswerer):
            notes.print(counted_passes(answer.passes))
    if failed:
        raise UsageError(f"not answered: {failed} of the questions (the reasons are above)")


def _options(choices: str | None) -> list[str]:
    """Return the answers to choose from, from "yes|no"; none if the option was not given."""
    options = [choice.strip() for choice in (choices or "").split("|") if choice.strip()]
    if choices is not None and not options:
        raise UsageError(f"--choices {choices!r} names no answer: put '|' between answers, 'yes|no'")
    return options


def _conversation(system: str, *, chat: bool | None) -> bool | str | None:
    """Return whether questions go through the chat template, or the system text that they go through it with."""
    if system and chat is False:
        raise UsageError(f"--system {system!r:.80} stands in a conversation: leave --no-chat out")
    return system or chat


def _check_passes(passes: str) -> None:
    if passes not in ("", AUTO) and not (passes.isdecimal() and int(passes)):
        raise UsageError(f"--passes {passes} is not a number of passes: --passes {AUTO}, or 1, 2, ...")


def _open(name: str, passes: str, **how: Any) -> "Answerer":
    """Open a scaffold or a cascade of several (`shoulders.open`), with the wanted number of passes."""
    from shoulders.answering import open as open_answerer
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.answering.cascade import CascadeAnswerer
    from shoulders.answering.stages import is_cascade
    from shoulders.scaffolds.storage import scaffold_folder

    if passes == AUTO and not is_cascade(name):
        place = scaffold_folder(name)
        raise UsageError(
            f"--passes {AUTO} needs thresholds, and {place} is one scaffold: calibrate several first (shoulders "
            f"calibrate {place} RUN --budget 1.5) and ask the folder that this writes"
        )
    answerer = open_answerer(name, **how)
    if isinstance(answerer, CascadeAnswerer):
        return answerer if passes in ("", AUTO) else answerer.only(int(passes))
    if isinstance(answerer, ModelAnswerer):
        if passes and int(passes) != answerer.passes:
            raise UsageError(
                f"--passes {passes}: {scaffold_folder(name)} answers with {counted_passes(answerer.passes)}, always: "
                "leave --passes out, or name another scaffold"
            )
        if answerer.doubt:
            notes.print(f"note: {answerer.doubt}", markup=False, soft_wrap=True)
    return answerer


def _print_answer(head: str, answer: "Answer", *, reads_passages: bool) -> None:
    """Print the answer on standard output, and the passages and choices behind it on standard error."""
    if reads_passages:
        for line in passage_lines(answer):
            notes.print(line, soft_wrap=True)
    if answer.candidates:
        notes.print("; ".join(one.text for one in answer.candidates), markup=False, highlight=False)
    say(head + (answer_text(answer) if reads_passages else answer.text))


def answer_text(answer: "Answer") -> str:
    """Return the answer, or "no answer"."""
    return NO_ANSWER if answer.answer is None else harmless(answer.answer)


def passage_lines(answer: "Answer") -> Iterator[Text]:
    """Yield the passages that were found, best first, the one with the answer in full, and how sure the model was."""
    places = answer.places
    last = max(places, default=0)
    for rank, passage in enumerate(answer.passages[:last], start=1):
        number = places.get(rank)
        head = f"{rank:3}  {passage.score:7.3f}  {'read' if rank in places else 'too long'}  "
        yield Text.assemble(head, (harmless(short(passage.title or passage.text)), "bold"))
        if answer.support and answer.passage and number == answer.support.number:
            text = Text(harmless(answer.passage.text))
            text.stylize("bold green", answer.support.start, answer.support.end)
            yield Text.assemble("     ", text)
    if more := len(answer.passages) - last:
        yield Text(f"{more} more found and not read (highest score {answer.passages[last].score:.3f})")
    yield Text(_support(answer))


def _support(answer: "Answer") -> str:
    """Return where the answer stands in the passages, and how sure the model was of it."""
    sure = f"probability {answer.probability:.3f}"
    if not answer.text:
        return f"the model generated no text; {sure}"
    if answer.answer is None:
        least = "such answers are never given" if answer.least > 1 else f"it must be at least {answer.least:.3f}"
        sure = f"{harmless(short(answer.text))!r} is not sure enough: {sure}, {least}"
    if answer.support is None or answer.passage is None:
        read = len(answer.read)
        where = f"in none of the {read} passages that were read" if read else "no passage was read"
        return f"the answer is not in the evidence ({where}); {sure}"
    support, title = answer.support, harmless(short(answer.passage.title))
    place = f"in passage {support.number + 1} of {len(answer.read)} read{f', {title},' if title else ''}"
    return f"{place} characters {support.start} to {support.end}; {sure}"


def typed_questions() -> Iterator[str]:
    """Yield questions from the keyboard until an empty line, or from a pipe, one on each line.

    Raises:
        UsageError: standard input is closed, or its bytes are not UTF-8.
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
        line.encode()  # in the locale C, Python passes other bytes on as surrogates
    except UnicodeError as error:
        raise UsageError(f"standard input is not UTF-8 ({error}): convert it first (iconv -t utf-8)") from error
    return line.removeprefix("\ufeff")


def _read_context(path: Path | None) -> str:
    """Return the text to read before each question."""
    from shoulders.store.encodings import decode_strict

    if path is None:
        return ""
    try:
        return decode_strict(path.read_bytes()).strip() + "\n\n"
    except (OSError, DataError) as error:
        raise SourceNotFound(f"cannot read {path}: {error}") from error
