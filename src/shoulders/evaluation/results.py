"""Results of a run as JSON (`results.json`), with their provenance."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, SourceNotFound
from shoulders.evaluation.metrics import METRICS
from shoulders.evaluation.protocol import Scores, WordingScore
from shoulders.evaluation.statistics import Measured, average_interval
from shoulders.records import Example
from shoulders.scaffolds.base import KINDS, Scaffold
from shoulders.store.files import read_json

LIBRARIES = ("shoulders", "torch", "transformers", "accelerate", "safetensors", "tokenizers")
OPTIONAL = ("datasets", "sacrebleu", "rouge-score")  # versions that scores depend on, recorded if installed
PACKAGE = Path(__file__).resolve().parents[1]


def provenance(recipe: Mapping[str, Any], lm: FrozenLM | FrozenEncoderDecoder) -> dict[str, Any]:
    """Return recipe, model, code, libraries, machine and time of a result."""
    return {
        "recipe": dict(recipe),
        "backbone": {"name": lm.name, "fingerprint": lm.fingerprint(), "dtype": lm.precision},
        **circumstances(),
    }


def describe_scaffold(scaffold: Scaffold, name: str | None) -> dict[str, Any]:
    """Return kind, cost, name and fingerprint of a scaffold and its encoder.

    Args:
        name: folder or hub repository of the scaffold; None if it was not saved.
    """
    encoder = scaffold.encoder
    return {
        "kind": scaffold.kind,
        "passes": scaffold.passes,
        "name": name,
        "fingerprint": identity(scaffold),
        "encoder": encoder and {"name": encoder.name, "fingerprint": encoder.fingerprint()},
    }


def label_of(kind: str) -> str:
    """Return the name of a kind of scaffold in reports; kinds that are no scaffold, such as rivals, name themselves."""
    return KINDS[kind].label if kind in KINDS else kind


NO_CODE = [f":(top,exclude){files}" for files in ("*.md", "*.png", "*/results/*.json")]  # prose, and what runs wrote


def circumstances(*libraries: str) -> dict[str, Any]:
    """Return code, versions (also of the named libraries), machine and time of a measurement."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *NO_CODE)),
        "versions": _versions(libraries),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _git(*arguments: str) -> str | None:
    """Return the output of git in the checkout that this code runs from; None outside a checkout.

    A package installed inside another repository (in its .venv) is not in a checkout of its own.
    """
    top = _git_output("rev-parse", "--show-toplevel")
    if top is None or (Path(top) / "src" / "shoulders").resolve() != PACKAGE:
        return None
    return _git_output(*arguments)


def _git_output(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


RESULTS = "results.json"
SAMPLES = 2  # number of predictions of each wording that are stored as samples


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one scaffold, as reports read them."""

    name: str
    content: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]] = ()

    @property
    def measured(self) -> list[Measured]:
        """Numbers of each example by the deciding metrics, for intervals."""
        return [
            Measured(row["task"], row["wording"], METRICS[row["metric"]], row["measured"])
            for row in self.content["wordings"]
        ]

    @property
    def seen(self) -> int:
        """Number of training examples, repetitions included, by the log or else the recipe."""
        training = self.content["recipe"]["training"]
        steps = self.log[-1]["number"] if self.log else training["steps"]
        return steps * training["batch_size"]

    @property
    def development(self) -> list[tuple[int, float]]:
        """Development scores with their steps, by the log or else the recorded training."""
        if self.log:
            return [(line["number"], line["score"]) for line in self.log if "score" in line]
        kept = self.content.get("training", {}).get("development", {})
        return [(int(step), score) for step, score in kept.items()]

    def measured_by(self, metric: str) -> list[Measured] | None:
        """Return the numbers of each example by one metric; None if not every wording has it."""
        found: list[Measured] = []
        for row in self.content["wordings"]:
            kept = {**row.get("others", {}), row["metric"]: row["measured"]}
            if metric not in kept:
                return None
            found.append(Measured(row["task"], row["wording"], METRICS[metric], kept[metric]))
        return found


def scores_as_json(scores: Scores) -> dict[str, Any]:
    """Return all scores as JSON: wordings, tasks, clusters, the average with its interval, and samples."""
    interval = average_interval(scores.measured)
    return {
        "average": scores.average,
        "average_interval": [interval.low, interval.high],
        "examples": scores.examples,
        "examples_hash": examples_hash(
            (row.task, row.wording, prediction.example) for row in scores.wordings for prediction in row.predictions
        ),
        "clusters": scores.clusters,
        "tasks": scores.tasks,
        "wordings": [_wording(row) for row in scores.wordings],
        "skipped": {wording: asdict(skipped) for wording, skipped in scores.skipped.items()},
        "unmeasured": list(scores.unmeasured),
        "truncated": scores.truncated,
    }


def metrics_of_tasks(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the metrics of each task, from (task, metric) of its wordings: "accuracy", or "accuracy, f1"."""
    found: dict[str, dict[str, None]] = {}
    for task, metric in pairs:
        found.setdefault(task, {})[metric] = None
    return {task: ", ".join(names) for task, names in found.items()}


def examples_hash(examples: Iterable[tuple[str, str, Example]]) -> str:
    """Return a hash over tasks, wordings and examples; equal hashes mean that the same examples were measured."""
    digest = hashlib.sha256()
    for task, wording, example in examples:
        digest.update(json.dumps([task, wording, example.question.whole, example.target]).encode())
    return digest.hexdigest()


def _wording(row: WordingScore) -> dict[str, Any]:
    metric = row.metrics[0]
    samples = [
        {"question": p.example.question.whole, "target": p.example.target, "answer": p.text}
        for p in row.predictions[:SAMPLES]
    ]
    return {
        "task": row.task,
        "cluster": row.cluster,
        "wording": row.wording,
        "examples": len(row.predictions),
        "metric": metric.name,
        "scores": row.scores,
        "measured": [list(p.measured[metric.name]) for p in row.predictions],
        "others": {one.name: [list(p.measured[one.name]) for p in row.predictions] for one in row.metrics[1:]},
        "samples": samples,
    }


def read_result(path: Path, name: str = "", log: Sequence[Mapping[str, Any]] = ()) -> Result:
    """Return the results in a run's folder or a file; their default name is that of the folder or file.

    Raises:
        SourceNotFound, CorruptFile: the file is missing, or holds no results.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.exists():
        raise SourceNotFound(
            f"there are no results at {path}: measure a run first (shoulders train, shoulders evaluate)"
        )
    content = read_json(file)
    if not {"average", "wordings", "recipe"} <= set(content):
        raise CorruptFile(f"{file} holds no results of shoulders")
    return Result(name or short_names([path])[0], content, log)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or more parts where names are equal; for a `results.json` the folder's."""
    places = [path.resolve() for path in paths]
    places = [place.parent if place.name == RESULTS else place for place in places]
    parts = [place.with_suffix("").parts if place.suffix == ".json" else place.parts for place in places]
    names = [some[-1] for some in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        count = Counter(names)
        names = ["/".join(some[-depth:]) if count[n] > 1 else n for n, some in zip(names, parts, strict=True)]
    count = Counter(names)  # a folder and a file beside it may have the same stem
    return [str(path) if count[name] > 1 else name for name, path in zip(names, paths, strict=True)]
