"""Distances between the prompts that a scaffold generates, and a map of them: table 8 of the paper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from shoulders.engine.batches import by_length
from shoulders.engine.inference import POSITIONS_AT_ONCE
from shoulders.errors import UsageError
from shoulders.evaluation import plots
from shoulders.evaluation.report import NONE, number
from shoulders.paper.tables import section, write_page
from shoulders.records import Example, Question
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt

SAME_TEMPLATE = "same data set, same template"
SAME_DATA_SET = "same data set, different templates"
DIFFERENT = "different data sets"

OnDone = Callable[[int, int], None]  # prompts generated, prompts in all


@dataclass(frozen=True, slots=True)
class Distance:
    """Mean and standard deviation of the distances of pairs of one kind; None if there is no pair."""

    pairs: int
    mean: float | None
    std: float | None


@dataclass(frozen=True, slots=True)
class PromptMap:
    """Prompts in the plane of their two principal directions.

    Attributes:
        points: coordinates of each prompt.
        shares: share of the variance along each of the two directions.
    """

    points: Sequence[tuple[float, float]]
    shares: tuple[float, float]


def generator_of(scaffold: Scaffold) -> InputPrompt:
    """Return the module that generates prompts inside a scaffold.

    Raises:
        UsageError: there is none.
    """
    for module in scaffold.modules():
        if isinstance(module, InputPrompt):
            return module
    raise UsageError(
        f"a scaffold of kind {scaffold.kind} generates no prompts: its prompt is the same for all inputs, so that all "
        "distances are 0; name an ID-PT scaffold (input_prompt)"
    )


@torch.no_grad()
def similarities(
    generator: InputPrompt,
    questions: Sequence[Question],
    positions_at_once: int = POSITIONS_AT_ONCE,
    on_done: OnDone = lambda _done, _all: None,
) -> Float[np.ndarray, "N N"]:
    """Return the cosine similarities of all pairs of generated prompts, each averaged over positions.

    All N prompts are held in memory: N x P x D numbers in fp32.

    Args:
        positions_at_once: size of the encoder's batches in positions, with its learned prompt and padding.

    Source: the paper, section 2.3 and footnote 4; it does not say how vectors become a distance of prompts.
    """
    encoder, room = generator.encoder, generator.source_room
    assert encoder is not None
    texts = [question.whole for question in questions]
    tokens = [encoder.source_tokens([text], room).ids.shape[1] for text in texts]
    directions = torch.empty(len(texts), generator.length, generator.project.out_features)
    done = 0
    for group in by_length(range(len(texts)), lambda number: room + tokens[number], positions_at_once):
        source = encoder.source_tokens([texts[number] for number in group], room).to(encoder.device)
        directions[group] = torch.nn.functional.normalize(generator.prompt(source), dim=-1).cpu()
        done += len(group)
        on_done(done, len(texts))
    total = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for vectors in directions.unbind(1):  # position by position
        total += vectors.double() @ vectors.double().T
    return (total / generator.length).numpy()


def distances(examples: Sequence[Example], alike: Float[np.ndarray, "N N"]) -> dict[str, Distance]:
    """Return cosine distances of pairs of examples: in one template, one data set, and two data sets.

    Two examples of one data set are two of its records: one record in two templates does not make a pair.

    Raises:
        UsageError: there is no pair at all.
    """
    tasks, templates, records = (
        np.unique([getattr(example, name) for example in examples], return_inverse=True)[1]
        for name in ("task", "template", "id")
    )
    task, template, record = (column[:, None] == column for column in (tasks, templates, records))
    once = np.triu(np.ones_like(task), k=1).astype(bool)
    kinds = {
        SAME_TEMPLATE: task & template,
        SAME_DATA_SET: task & ~template & ~record,
        DIFFERENT: ~task,
    }
    apart = np.clip(1 - alike, 0, None)
    found = {kind: _distance(apart[chosen & once]) for kind, chosen in kinds.items()}
    if not any(one.pairs for one in found.values()):
        raise UsageError(
            f"there is no pair of examples to compare among {len(examples)}: take more of each template "
            "(development.limit), or more tasks (suite.tasks)"
        )
    return found


def _distance(some: np.ndarray) -> Distance:
    if not len(some):
        return Distance(0, None, None)
    return Distance(len(some), float(some.mean()), float(some.std()))


def prompt_map(alike: Float[np.ndarray, "N N"]) -> PromptMap:
    """Return the two principal components of the prompts, computed from their similarities.

    The vectors of the prompts have length 1. A direction has no sign of its own: the sign is chosen so that the point
    farthest from the origin is positive.
    """
    centred = alike - alike.mean(axis=0) - alike.mean(axis=1)[:, None] + alike.mean()
    values, vectors = np.linalg.eigh(centred)
    kept = np.clip(values, 0, None)
    points = (vectors * np.sqrt(kept))[:, ::-1][:, :2]  # the largest come last
    points = points * np.where(np.abs(points.max(axis=0)) < np.abs(points.min(axis=0)), -1, 1)
    first, second = kept[::-1][:2] / max(kept.sum(), np.finfo(float).tiny)
    return PromptMap([(float(x), float(y)) for x, y in points], (float(first), float(second)))


CAPTIONS = {plots.PROMPTS: "generated prompts in the plane of their two principal directions, by task"}
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
    """Write distances between the prompts of some examples, and a map of them; return the page's path and a summary.

    Args:
        name: name of the scaffold.
        about: provenance of the scaffold, for the JSON file.
        positions_at_once, on_done: as in `similarities`.

    Raises:
        UsageError: there is no pair of examples.
        SaveFailed: the folder cannot be written.
    """
    alike = similarities(generator, [example.question for example in examples], positions_at_once, on_done)
    apart, placed = distances(examples, alike), prompt_map(alike)
    located = list(zip(examples, placed.points, strict=True))
    points: dict[str, list[tuple[float, float]]] = {}
    for example, point in located:
        points.setdefault(example.task, []).append(point)
    summary = _summary(name, apart[SAME_TEMPLATE].mean, apart[DIFFERENT].mean, len(examples), len(points))
    rows = [
        {"vectors from": kind, "mean": _digits(one.mean), "std": _digits(one.std), "pairs": number(one.pairs)}
        for kind, one in apart.items()
    ]
    table = section("Distances between generated prompts (table 8 of the paper)", rows, ("vectors from",), NOTE)
    numbers = {
        "distances": {kind: asdict(one) for kind, one in apart.items()},
        "variance_shown": placed.shares,
        "prompts": [
            {"task": example.task, "template": example.template, "id": example.id, "point": point}
            for example, point in located
        ],
        **about,
    }

    def draw() -> Sequence[str]:
        return [plots.draw_map(points, placed.shares, folder)]

    def parts(drawn: Sequence[str]) -> Sequence[str]:
        return ["# Generated prompts", summary, table, *drawn]

    return write_page(folder, "prompts", draw, parts, numbers, CAPTIONS), summary


def _digits(value: float | None) -> str:
    return NONE if value is None else f"{value:#.3g}"


def _summary(name: str, near: float | None, far: float | None, prompts: int, tasks: int) -> str:
    """Return how far apart prompts of one template, and of different data sets, are."""
    counts = f"{name}: {prompts:,} prompts for {tasks} data set{'s' * (tasks != 1)}."
    if near is None or far is None:
        return counts
    times = f", {far / near:.1f} times as far" if near else ""
    return f"{counts} Those of one template lie {near:#.3g} apart, those of different data sets {far:#.3g}{times}."
