"""How far the prompts that a scaffold generates lie apart, and a map of them: table 8 of the paper."""

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
from shoulders.evaluation.report import NONE, markdown, number
from shoulders.records import Example, Question
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.store.files import save_failed, write_json

SAME_TEMPLATE = "same data set, same template"
SAME_DATA_SET = "same data set, different templates"
DIFFERENT = "different data sets"

OnDone = Callable[[int, int], None]  # prompts generated, prompts in all


@dataclass(frozen=True, slots=True)
class Distance:
    """Of pairs of one kind: mean and standard deviation over the pairs; None without any."""

    pairs: int
    mean: float | None
    std: float | None


@dataclass(frozen=True, slots=True)
class PromptMap:
    """Prompts in the plane of their two principal directions.

    Attributes:
        points: of each prompt.
        shares: of the variance, that the two directions stand for.
    """

    points: Sequence[tuple[float, float]]
    shares: tuple[float, float]


def generator_of(scaffold: Scaffold) -> InputPrompt:
    """What generates prompts in a scaffold, wherever it stands inside.

    Raises:
        UsageError: nothing does.
    """
    for module in scaffold.modules():
        if isinstance(module, InputPrompt):
            return module
    raise UsageError(
        f"a scaffold of kind {scaffold.kind} generates no prompts: what it has is the same for all inputs, so that all "
        "distances are 0; name an ID-PT scaffold (input_prompt)"
    )


@torch.no_grad()
def similarities(
    generator: InputPrompt,
    questions: Sequence[Question],
    positions_at_once: int = POSITIONS_AT_ONCE,
    on_done: OnDone = lambda _done, _all: None,
) -> Float[np.ndarray, "N N"]:
    """Cosine similarity of each two generated prompts: the mean over positions of that of the vectors at the position.

    Memory for all N prompts is taken: N x P x D numbers in fp32.

    Args:
        positions_at_once: of the encoder, its learned prompt and padding included.

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
    """Cosine distance over pairs of examples: of one template, of two templates of one data set, of two data sets.

    Two examples of one data set are two of its records: one record in two templates is no pair.

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
    """Principal components of the prompts, whose vectors are brought to length 1, from their similarities alone.

    A direction has no sign of its own: the point farthest out along it lies on the positive side.
    """
    centred = alike - alike.mean(axis=0) - alike.mean(axis=1)[:, None] + alike.mean()
    values, vectors = np.linalg.eigh(centred)
    kept = np.clip(values, 0, None)
    points = (vectors * np.sqrt(kept))[:, ::-1][:, :2]  # the largest come last
    points = points * np.where(np.abs(points.max(axis=0)) < np.abs(points.min(axis=0)), -1, 1)
    first, second = kept[::-1][:2] / max(kept.sum(), np.finfo(float).tiny)
    return PromptMap([(float(x), float(y)) for x, y in points], (float(first), float(second)))


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
