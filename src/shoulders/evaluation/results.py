"""Scores as JSON and back: what a run leaves behind and a report reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoulders.errors import CorruptFile, SourceNotFound
from shoulders.evaluation.metrics import METRICS
from shoulders.evaluation.protocol import Scores, WordingScore
from shoulders.evaluation.statistics import Measured, average_interval
from shoulders.files import read_json

RESULTS = "results.json"
SAMPLES = 2  # predictions of each wording that are kept to be looked at


@dataclass(frozen=True, slots=True)
class Result:
    """One measured scaffold as a report shows it."""

    name: str
    content: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]] = ()

    @property
    def measured(self) -> list[Measured]:
        """By example, for intervals."""
        return [
            Measured(row["task"], row["wording"], METRICS[row["metric"]], row["measured"])
            for row in self.content["wordings"]
        ]


def scores_as_json(scores: Scores) -> dict[str, Any]:
    """Per wording, per task (median over wordings), per cluster, average with its interval, examples to look at."""
    interval = average_interval(scores.measured)
    return {
        "average": scores.average,
        "average_interval": [interval.low, interval.high],
        "examples": scores.examples,
        "clusters": scores.clusters,
        "tasks": scores.tasks,
        "wordings": [_wording(row) for row in scores.wordings],
        "skipped": {wording: asdict(skipped) for wording, skipped in scores.skipped.items()},
        "unmeasured": list(scores.unmeasured),
        "truncated": scores.truncated,
    }


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
        "samples": samples,
    }


def read_result(path: Path, name: str = "", log: Sequence[Mapping[str, Any]] = ()) -> Result:
    """A `results.json`, or the one in a run's folder.

    Raises:
        SourceNotFound, CorruptFile: there is none, or it is not one.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.exists():
        raise SourceNotFound(
            f"there are no results at {path}: measure a run first (shoulders train, shoulders evaluate)"
        )
    content = read_json(file)
    if not {"average", "wordings", "recipe"} <= set(content):
        raise CorruptFile(f"{file} holds no results of shoulders")
    return Result(name or content["recipe"]["name"], content, log)
