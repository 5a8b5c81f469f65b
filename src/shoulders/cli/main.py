"""The command line: its commands in the order of the help, and errors as one line.

A command's module is imported when the command runs; the help of all lists the lines that stand here.
"""

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shoulders.cli.show import error_console
from shoulders.errors import UsageError

COMMANDS = {  # by panel of the help: module and first line of each command
    None: {
        "demo": (
            "demo",
            "Train a soft prompt and gated low-rank updates on the bundled suite, compare them with the bare model, "
            "ask them.",
        ),
        "train": (
            "train",
            "Train a recipe's scaffold (or retriever, or re-ranker), and measure the best one on the test part.",
        ),
        "sweep": (
            "train",
            "Train candidates for a tenth of a recipe's steps, then go on with the one that is best on "
            "the development part.",
        ),
        "evaluate": (
            "evaluate",
            "Measure a scaffold by rank classification or generation: per template, median over "
            "templates, clusters, average.",
        ),
        "forget": (
            "evaluate",
            "Measure what training made the language model forget: perplexity and scores on other "
            "data, before and after.",
        ),
        "ask": (
            "ask",
            "Answer questions with a trained scaffold, or with several that `shoulders calibrate` put in "
            "order of cost.",
        ),
        "serve": (
            "serve",
            "Serve scaffolds, readers and cascades over one frozen model, by an OpenAI-compatible API and a web page.",
        ),
        "calibrate": (
            "calibrate",
            "Choose by confidence which questions go on to a more expensive run, within a budget of passes.",
        ),
        "threshold": (
            "calibrate",
            'Choose how sure a reader must be to answer; below that, `shoulders ask` prints "no answer".',
        ),
        "report": ("report", "Compare measured runs: write tables, plots and the numbers as JSON."),
        "sample": (
            "evaluate",
            "Sample answers, and report how often a right one is among them: the limit of what "
            "textual recursion can gain.",
        ),
    },
    "Evidence corpus": {
        "index": ("corpus", "Build an evidence corpus: passages of 100 words, searched by BM25."),
        "encode": ("corpus", "Encode the passages of an index as vectors, for `shoulders search --retriever dense`."),
        "search": (
            "corpus",
            "Find passages of an index by BM25, by vectors (`shoulders encode`) or by both, on this "
            "machine or on a server.",
        ),
        "upload": (
            "corpus",
            "Send an index to Milvus: BM25's weights as sparse vectors, or the vectors of `shoulders encode`.",
        ),
    },
    "Tools": {
        "recipes": (
            "tools",
            "List the named recipes, or show every value of one, as `key=value` lines that the command line accepts.",
        ),
        "check": ("tools", "Check a suite before it is trained on: broken lines, failing templates, repeated ids."),
        "plan": (
            "tools",
            "Estimate what a recipe costs at any scale, without loading a weight: parameters, memory, "
            "floating-point work.",
        ),
        "convert": (
            "tools",
            "Convert a scaffold to a PEFT adapter with the same logits, or an adapter to a scaffold.",
        ),
        "export": ("tools", "Write what a server without this library needs to serve a soft prompt or a LoRA adapter."),
        "serve-key": (
            "serve",
            "Make an API key for `shoulders serve --keys FILE` and print it, once: the file keeps only its hash.",
        ),
        "bench-serve": (
            "bench",
            "Measure an OpenAI endpoint under load, ours or any other: throughput, time to first token, latency.",
        ),
    },
}


class _Commands(TyperGroup):
    """The commands by their help lines; the one that is to run is imported."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.commands = {
            name: TyperCommand(name, help=line, rich_help_panel=panel)
            for panel, some in COMMANDS.items()
            for name, (_, line) in some.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that the first argument names, and the arguments after it."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and command(listed.name or ""), rest


def command(name: str) -> Any:
    """Return a command with its options, imported from its module."""
    module = next(some[name][0] for some in COMMANDS.values() if name in some)
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name)(getattr(import_module(f"shoulders.cli.{module}"), name.replace("-", "_")))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""More out of one **frozen** language model: train a scaffold around it, measure it, save it, ask it.

Start with `shoulders demo`. Then train a recipe of your own:

`shoulders recipes` · `shoulders train bundled_input_prompt --out runs/first` · `shoulders ask runs/first`

Every value of a recipe can be changed on the command line: `training.steps=200 scaffold.length=20`.
""",
)


@app.callback()
def _all() -> None:
    """Do nothing: it makes a group of commands of the app."""


def main() -> None:
    """Run the command line; print an error that the user can mend as one line instead of a stack trace."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):  # for terminals that cannot show every character
            stream.reconfigure(errors=errors)
    try:
        app()
    except UsageError as error:
        error_console.print(f"error: {error}", markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
