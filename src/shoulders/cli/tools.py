"""`shoulders recipes`, `check`, `plan` and `convert`: commands that inspect and convert."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from shoulders.cli.common import Overrides, find_recipe
from shoulders.cli.show import console, inform, quiet_libraries, say
from shoulders.errors import DataError, SourceNotFound, UnknownName

if TYPE_CHECKING:
    from shoulders.runs.cost import Cost
    from shoulders.runs.memory import Planned

INDEX = "index"  # `shoulders plan index` instead of a recipe's name


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="recipe whose values are printed; without it, all are listed", show_default=False),
    ] = None,
) -> None:
    """List the named recipes, or show every value of one, as `key=value` lines that the command line accepts.

    Example: `shoulders recipes bundled_soft_prompt`
    """
    from shoulders.runs.ranking_recipes import ranking_recipes
    from shoulders.runs.registry import recipe_named
    from shoulders.runs.registry import recipes as all_recipes
    from shoulders.store.files import flatten

    if name is None:
        table = Table("recipe", "description", box=None, header_style="bold")
        for recipe in [*all_recipes().values(), *ranking_recipes().values()]:
            table.add_row(recipe.name, recipe.about)
        console.print(table)
        console.print("shoulders recipes NAME shows the values of one", style="dim")
        return
    chosen = ranking_recipes().get(name) or recipe_named(name)
    for key, value in flatten(chosen.as_json()).items():
        say(f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}")


def check(
    suite: Annotated[str, typer.Argument(help="a suite, as suite.source names it: a folder, qa:..., p3:..., hub:...")],
    tasks: Annotated[list[str] | None, typer.Argument(help="check these tasks only", show_default=False)] = None,
) -> None:
    """Check a suite before it is trained on: broken lines, failing templates, repeated ids.

    Every record is read and rendered in every template. Ids are the records' `id` fields, compared within a split.

    Example: `shoulders check data/my-suite`
    """
    from collections import Counter

    from shoulders.data.checking import find_problems
    from shoulders.data.readers import open_suite
    from shoulders.evaluation.metrics import check_metrics

    quiet_libraries()
    counts: Counter[str] = Counter()
    for task in open_suite(suite, tasks or []):
        splits = {split: task.rows(split, name) for name in task.wordings for split in task.split_names(name)}
        rows = ", ".join(f"{count:,} {split}" for split, count in splits.items())
        inform(f"{task.name}: {rows}; {len(task.wordings)} templates")
        for wording in task.wordings:
            check_metrics(task.name, wording, task.metrics(wording))
        for problem in find_problems(task):
            counts[problem.what] += problem.count
            say(f"  {problem.split}: {problem.count} {problem.what}; the first: {problem.first}")
    if counts:
        summary = ", ".join(f"{count} {problem}" for problem, count in counts.items())
        raise DataError(f"something is wrong in {suite!r}: {summary}")
    console.print("nothing is wrong")


def plan(  # noqa: PLR0913, PLR0917 (one for each option)
    recipe: Annotated[
        str, typer.Argument(help="a recipe's name or recipe.json file, or 'index' for an evidence corpus")
    ],
    overrides: Overrides = None,
    input_length: Annotated[int, typer.Option(help="tokens of an input")] = 256,
    output_length: Annotated[int, typer.Option(help="tokens of an answer")] = 16,
    card: Annotated[
        float, typer.Option(help="GB of an accelerator, to print the largest micro-batch that fits", show_default=False)
    ] = 0,
    shards: Annotated[
        int, typer.Option(help="number of processes that share the layers' weights (backbone.parallel)", min=1)
    ] = 1,
    passages: Annotated[int, typer.Option(help="passages of an index; DPR's Wikipedia has 21,015,324")] = 21_015_324,
    dimension: Annotated[int, typer.Option(help="numbers in each dense vector of an index")] = 768,
    tokens_per_second: Annotated[float, typer.Option(help="tokens that the encoder of an index reads in a second")] = 0,
) -> None:
    """Estimate what a recipe costs at any scale, without loading a weight: parameters, memory, floating-point work.

    A training step and an answer are run on PyTorch's meta device, which has shapes but no values, and counted: with
    the backbone quantised, streamed or checkpointed as the recipe says (backbone.quantize, backbone.offload,
    training.checkpointing).

    `shoulders plan index --passages N --dimension D` estimates what an evidence corpus of that size needs on disk, in
    memory and in time, for each kind of index.

    Example: `shoulders plan paper_idpt --input-length 512`
    """
    from shoulders.runs.cost import cost
    from shoulders.runs.memory import Planned
    from shoulders.scaffolds.base import KINDS

    if recipe == INDEX:
        _plan_index(passages, dimension, tokens_per_second)
        return
    quiet_libraries()
    planned = find_recipe(recipe, overrides or [])
    lengths = (input_length, output_length)
    costs, training = cost(planned, *lengths), planned.training
    console.print(f"[bold]{planned.name}[/bold]: {KINDS[planned.scaffold.kind].label} around {planned.backbone.name}")
    console.print(_parameters(costs))
    console.print(_memory(costs, Planned.of(planned, shards), lengths, card))
    if costs.context_bytes:
        console.print(_contexts(costs, training.batch_size * training.steps, input_length))
    console.print(_work(costs, training.batch_size, training.steps, input_length, output_length))


def _parameters(costs: "Cost") -> Table:
    table = Table("parameters", "count", "of the backbone", box=None, header_style="bold")
    trained = sum(costs.trained.values())
    for part, count in costs.trained.items():
        table.add_row(f"trained: {part}", f"{count:,}", _share(count, costs.backbone))
    table.add_row("trained in all", f"{trained:,}", _share(trained, costs.backbone), style="bold")
    if costs.encoder:
        table.add_row("frozen encoder", f"{costs.encoder:,}", _share(costs.encoder, costs.backbone))
    table.add_row("frozen backbone", f"{costs.backbone:,}", "")
    return table


def _memory(costs: "Cost", planned: "Planned", lengths: tuple[int, int], card: float) -> Table:
    """Return the memory of a training step, and what fits on a device of `card` GB; 0 for none."""
    rows = planned.rows(*lengths)
    needs = planned.memory(rows, *lengths)
    table = Table("memory", "GB", "", box=None, header_style="bold")
    table.add_row("frozen weights", _gb(needs.weights), planned.kept)
    table.add_row("trained parameters, Adam", _gb(needs.trained), "fp32")
    batch = planned.recipe.training.batch_size
    table.add_row("activations, gradients, logits", _gb(needs.step), f"a micro-batch of {rows}, a step of {batch}")
    table.add_row("a training step at its peak", _gb(needs.peak))
    table.add_row("keys and values of one answer", _gb(costs.cache_bytes))
    if card:
        fits = planned.most_rows(int(card * 1e9), *lengths)
        table.add_row(f"largest micro-batch on {card:g} GB", f"{fits:,}", "examples" if fits else "it does not fit")
    return table


def _contexts(costs: "Cost", examples: int, length: int) -> Table:
    table = Table("keys and values on disk", "GB", "", box=None, header_style="bold")
    bytes_per_token = f"{costs.context_bytes // length:,} bytes a token"
    table.add_row(f"a context of {length} tokens", _gb(costs.context_bytes), bytes_per_token)
    about = f"of {examples:,} examples; repeated examples and shared contexts count once"
    table.add_row("of the whole run at most", _gb(costs.context_bytes * examples), about)
    return table


def _work(costs: "Cost", batch: int, steps: int, input_length: int, output_length: int) -> Table:
    table = Table("floating-point work", "TFLOP", "", box=None, header_style="bold")
    lengths = f"{input_length} tokens in, {output_length} out"
    over_prompt, over_bare = "over a plain prompt", "over bare"
    for name, work, note in (
        (f"a training step of {batch} examples", costs.step, f"{_over(costs.step, costs.step_floor)} {over_prompt}"),
        (f"the whole run of {steps:,} steps", costs.step * steps, ""),
        ("one answer, bare model", costs.answer_bare, lengths),
        (
            "one answer, plain prompt of that length",
            costs.answer_prompt,
            f"{_over(costs.answer_prompt, costs.answer_bare)} {over_bare}",
        ),
        ("one answer, this scaffold", costs.answer, f"{_over(costs.answer, costs.answer_prompt)} {over_prompt}"),
    ):
        table.add_row(name, f"{work / 1e12:,.3f}", note)
    return table


def _share(count: int, whole: int) -> str:
    return f"{100 * count / whole:.3g}%"


def _over(value: int, base: int) -> str:
    return f"{100 * (value / base - 1):+.1f}%"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3f}"


def _plan_index(passages: int, dimension: int, tokens_per_second: float) -> None:
    """Print what an index of so many passages needs, by kind of index."""
    from shoulders.retrieval.sizes import TOKENS, needs

    table = Table("part", "disk GB", "memory GB", "hours", "", box=None, header_style="bold")
    for need in needs(passages, dimension, tokens_per_second):
        hours = "" if need.seconds is None else f"{need.seconds / 3600:,.2f}"
        table.add_row(need.part, f"{need.disk / 1e9:,.2f}", f"{need.memory / 1e9:,.2f}", hours, need.note)
    console.print(f"[bold]{passages:,} passages[/bold], vectors of {dimension:,} numbers")
    console.print(table)
    hint = "" if tokens_per_second else ": --tokens-per-second gives its hours"
    inform(f"an encoder reads about {passages * TOKENS / 1e9:,.2f} billion tokens{hint}")


def convert(
    source: Annotated[Path, typer.Argument(help="folder of a run, of a scaffold, or of a PEFT adapter")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    backbone: Annotated[
        str | None, typer.Option(help="the language model that it belongs to [default: the one named in the folder]")
    ] = None,
) -> None:
    """Convert a scaffold to a PEFT adapter with the same logits, or an adapter to a scaffold.

    Prompt tuning, prefix tuning (also cartridges), LoRA and (IA)³ are known on both sides.

    Example: `shoulders convert runs/first adapter`
    """
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.scaffolds.base import Scaffold
    from shoulders.scaffolds.peft import CONFIG as PEFT_CONFIG
    from shoulders.scaffolds.peft import base_of, from_peft, to_peft
    from shoulders.scaffolds.storage import CONFIG, read_origin, scaffold_folder

    quiet_libraries()
    source = Path(scaffold_folder(str(source)))
    if (source / PEFT_CONFIG).exists():
        lm = FrozenLM.load(backbone or base_of(source))
        from_peft(source, lm).made_for(lm).save_pretrained(target)
    elif (source / CONFIG).exists():
        lm = FrozenLM.load(backbone or read_origin(str(source)).backbone)
        to_peft(Scaffold.load(source, lm), lm, target)
    else:
        raise SourceNotFound(f"{source} holds neither a scaffold ({CONFIG}) nor a PEFT adapter ({PEFT_CONFIG})")
    inform(f"written to {target}")


def export(
    scaffold: Annotated[str, typer.Argument(help="folder of a run, a scaffold or a rival, or a hub name")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    to: Annotated[str, typer.Option(metavar="vllm", help="the server that is to serve it")] = "vllm",
    backbone: Annotated[
        str | None, typer.Option(help="the frozen model [default: the one named in the scaffold]")
    ] = None,
) -> None:
    """Write what a server without this library needs to serve a soft prompt or a LoRA adapter.

    The folder has a README with the commands; for a soft prompt also a script that asks with it.

    Example: `shoulders export runs/first served/first --to vllm`
    """
    from shoulders.serving.export import export_for_vllm

    if to != "vllm":
        raise UnknownName("server to export for", to, ["vllm"])
    quiet_libraries()
    export_for_vllm(scaffold, target, backbone)
    inform(f"written to {target}: its README.md has the commands")
