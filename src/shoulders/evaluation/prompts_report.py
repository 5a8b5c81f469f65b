"""The report on generated prompts: table 8 of the paper, and a map of them coloured by task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.prompts import DIFFERENT, SAME_TEMPLATE, OnDone, distances, prompt_map, similarities
from shoulders.evaluation.tables import NONE, markdown, number
from shoulders.files import save_failed, write_json
from shoulders.records import Example
from shoulders.scaffolds.input_prompt import InputPrompt

PAGE, NUMBERS = "prompts.md", "prompts.json"
ALT = "generated prompts in the plane of their two principal directions, by task"
NOTE = (
    "Cosine distance, 1 - a·b / |a||b|, of the vectors at the same position of two prompts, averaged over positions; "
    "mean and standard deviation are over pairs of prompts. Two examples of one data set are two of its records."
)


def write_prompts_report(
    name: str,
    generator: InputPrompt,
    examples: Sequence[Example],
    folder: Path,
    about: Mapping[str, Any],
    positions_at_once: int,
    on_done: OnDone = lambda _done, _all: None,
) -> tuple[Path, str]:
    """Write distances between the prompts generated for some examples, and a map; returns the page and a summary.

    Args:
        name: of the scaffold.
        about: where it comes from, for the JSON file.
        positions_at_once, on_done: as in `similarities`.

    Raises:
        UsageError: there is no pair of examples.
        SaveFailed: the folder cannot be written.
    """
    alike = similarities(generator, [example.question for example in examples], positions_at_once, on_done)
    found, placed = distances(examples, alike), prompt_map(alike)
    points: dict[str, list[tuple[float, float]]] = {}
    for example, point in zip(examples, placed.points, strict=True):
        points.setdefault(example.task, []).append(point)
    columns = {
        "vectors from": list(found),
        "mean": [NONE if one.mean is None else f"{one.mean:#.3g}" for one in found.values()],
        "std": [NONE if one.std is None else f"{one.std:#.3g}" for one in found.values()],
        "pairs": [number(one.pairs) for one in found.values()],
    }
    told = _told(name, found[SAME_TEMPLATE].mean, found[DIFFERENT].mean, len(examples), len(points))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw_map(points, placed.shares, folder)
        table = (
            f"## Distances between generated prompts (table 8 of the paper)\n\n{markdown(columns, ('vectors from',))}"
        )
        parts = ["# Generated prompts", told, table, NOTE, f"![{ALT}]({drawn})"]
        (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    prompts = [
        {"task": example.task, "template": example.template, "id": example.id, "point": point}
        for example, point in zip(examples, placed.points, strict=True)
    ]
    content = {
        "distances": {kind: asdict(one) for kind, one in found.items()},
        "variance_shown": placed.shares,
        "prompts": prompts,
        **about,
    }
    write_json(folder / NUMBERS, content)
    return folder / PAGE, told


def _told(name: str, near: float | None, far: float | None, prompts: int, tasks: int) -> str:
    told = f"{name}: {prompts:,} prompts for {tasks} data set{'s' * (tasks != 1)}."
    if near is None or far is None:
        return told
    times = f", {far / near:.1f} times as far" if near else ""
    return f"{told} Those of one template lie {near:#.3g} apart, those of different data sets {far:#.3g}{times}."
