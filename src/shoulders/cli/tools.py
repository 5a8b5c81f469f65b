"""What the tools do: `shoulders recipes`, `check`, `plan` and `convert`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import find_recipe
from shoulders.cli.show import console, quiet_libraries, say
from shoulders.data.checking import find_problems
from shoulders.data.readers import open_suite
from shoulders.errors import DataError, SourceNotFound, UsageError
from shoulders.retrieval.sizes import TOKENS, needs
from shoulders.runs.cost import Cost, cost
from shoulders.runs.ranking_recipes import ranking_recipes
from shoulders.runs.registry import recipe_named, recipes
from shoulders.scaffolds.base import KINDS, Scaffold
from shoulders.scaffolds.peft import CONFIG as PEFT_CONFIG
from shoulders.scaffolds.peft import base_of, from_peft, to_peft
from shoulders.scaffolds.storage import CONFIG, read_origin
from shoulders.store.files import flat


def run_recipes(name: str | None) -> None:
    """List the recipes, or show one as `key=value` lines that the command line takes back."""
    if name is None:
        table = Table("recipe", "what it is", box=None, header_style="bold")
        for recipe in [*recipes().values(), *ranking_recipes().values()]:
            table.add_row(recipe.name, recipe.about)
        console.print(table)
        console.print("shoulders recipes NAME shows the values of one", style="dim")
        return
    chosen = ranking_recipes().get(name) or recipe_named(name)
    for key, value in flat(chosen.as_json()).items():
        say(f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}")


def run_check(source: str, names: list[str]) -> None:
    """Look through a suite, task by task, and say what is wrong.

    Raises:
        DataError: something is.
    """
    quiet_libraries()
    found: Counter[str] = Counter()
    for task in open_suite(source, names):
        splits = {split: task.rows(split, name) for name in task.wordings for split in task.split_names(name)}
        told = ", ".join(f"{rows:,} {split}" for split, rows in splits.items())
        console.print(f"{task.name}: {told}; {len(task.wordings)} templates", markup=False)
        for problem in find_problems(task):
            found[problem.what] += problem.count
            say(f"  {problem.split}: {problem.count} {problem.what}; the first: {problem.first}")
    if found:
        told = ", ".join(f"{count} {what}" for what, count in found.items())
        raise DataError(f"something is wrong in {source!r}: {told}")
    console.print("nothing is wrong")


def run_plan(name: str, overrides: Sequence[str], input_length: int, output_length: int) -> None:
    """Print what a recipe costs."""
    quiet_libraries()
    recipe = find_recipe(name, overrides)
    found = cost(recipe, input_length, output_length)
    console.print(f"[bold]{recipe.name}[/bold]: {KINDS[recipe.scaffold.kind].label} around {recipe.backbone.name}")
    console.print(_parameters(found))
    console.print(_memory(found, recipe.training.batch_size))
    if found.context_bytes:
        console.print(_contexts(found, recipe.training.batch_size * recipe.training.steps, input_length))
    console.print(_work(found, recipe.training.batch_size, recipe.training.steps, input_length, output_length))


def _parameters(found: Cost) -> Table:
    table = Table("parameters", "count", "of the backbone", box=None, header_style="bold")
    trained = sum(found.trained.values())
    for part, count in found.trained.items():
        table.add_row(f"trained: {part}", f"{count:,}", _share(count, found.backbone))
    table.add_row("trained in all", f"{trained:,}", _share(trained, found.backbone), style="bold")
    if found.encoder:
        table.add_row("frozen encoder", f"{found.encoder:,}", _share(found.encoder, found.backbone))
    table.add_row("frozen backbone", f"{found.backbone:,}", "")
    return table


def _memory(found: Cost, batch: int) -> Table:
    table = Table("memory", "GB", "", box=None, header_style="bold")
    table.add_row("frozen weights", _gb(found.weights_bytes))
    table.add_row("trained parameters, gradients, Adam", _gb(found.training_bytes), "fp32")
    table.add_row("activations", _gb(found.activations_bytes), f"of one micro-batch (a step has {batch} examples)")
    table.add_row("a training step in all", _gb(found.weights_bytes + found.training_bytes + found.activations_bytes))
    table.add_row("keys and values of one answer", _gb(found.cache_bytes))
    return table


def _contexts(found: Cost, examples: int, length: int) -> Table:
    table = Table("keys and values on disk", "GB", "", box=None, header_style="bold")
    table.add_row(
        f"a context of {length} tokens", _gb(found.context_bytes), f"{found.context_bytes // length:,} bytes a token"
    )
    about = f"of {examples:,} examples; those that come again, and contexts that several share, count once"
    table.add_row("of the whole run at most", _gb(found.context_bytes * examples), about)
    return table


def _work(found: Cost, batch: int, steps: int, input_length: int, output_length: int) -> Table:
    table = Table("floating-point work", "TFLOP", "", box=None, header_style="bold")
    table.add_row(
        f"a training step of {batch} examples",
        _tera(found.step),
        f"{_over(found.step, found.step_floor)} over a plain prompt",
    )
    table.add_row(f"the whole run of {steps:,} steps", _tera(found.step * steps), "")
    table.add_row("one answer, bare model", _tera(found.answer_bare), f"{input_length} tokens in, {output_length} out")
    table.add_row(
        "one answer, plain prompt as long",
        _tera(found.answer_prompt),
        f"{_over(found.answer_prompt, found.answer_bare)} over bare",
    )
    table.add_row(
        "one answer, this scaffold",
        _tera(found.answer),
        f"{_over(found.answer, found.answer_prompt)} over a plain prompt",
    )
    return table


def _share(count: int, whole: int) -> str:
    return f"{100 * count / whole:.3g}%"


def _over(value: int, base: int) -> str:
    return f"{100 * (value / base - 1):+.1f}%"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3f}"


def _tera(operations: int) -> str:
    return f"{operations / 1e12:,.3f}"


NAME = "index"  # in the place of a recipe's


def run_plan_index(passages: int, dimension: int, tokens_per_second: float) -> None:
    """Print what an index of so many passages needs, by engine."""
    table = Table("part", "disk GB", "memory GB", "hours", "", box=None, header_style="bold")
    for need in needs(passages, dimension, tokens_per_second):
        hours = "" if need.seconds is None else f"{need.seconds / 3600:,.2f}"
        table.add_row(need.part, f"{need.disk / 1e9:,.2f}", f"{need.memory / 1e9:,.2f}", hours, need.note)
    console.print(f"[bold]{passages:,} passages[/bold], vectors of {dimension:,} numbers")
    console.print(table)
    told = f"an encoder reads about {passages * TOKENS / 1e9:,.2f} billion tokens"
    told += "" if tokens_per_second else ": --tokens-per-second gives its hours"
    console.print(told, soft_wrap=True)


def run_convert(source: Path, target: Path, backbone: str | None) -> None:
    """Convert in the direction that the source's files tell."""
    quiet_libraries()
    if (source / PEFT_CONFIG).exists():
        prompt = from_peft(source)
        lm = FrozenLM.load(backbone or base_of(source))
        if prompt.prompt.shape[1] != lm.width:
            raise UsageError(f"the adapter's width is {prompt.prompt.shape[1]}, that of {lm.name!r} is {lm.width}")
        prompt.made_for(lm).save_pretrained(target)
    elif (source / CONFIG).exists():
        lm = FrozenLM.load(backbone or read_origin(str(source)).backbone)
        to_peft(Scaffold.load(source, lm), lm, target)
    else:
        raise SourceNotFound(f"{source} holds neither a scaffold ({CONFIG}) nor a PEFT adapter ({PEFT_CONFIG})")
    console.print(f"written to {target}")
