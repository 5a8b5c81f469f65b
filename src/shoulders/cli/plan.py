"""`shoulders plan`."""

from collections.abc import Sequence

from rich.table import Table

from shoulders.cli.common import find_recipe
from shoulders.cli.show import console, quiet_libraries
from shoulders.recipes.planning import Cost, cost
from shoulders.scaffolds.base import KINDS


def run(name: str, overrides: Sequence[str], input_length: int, output_length: int) -> None:
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
