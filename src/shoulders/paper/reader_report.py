"""The report on readers: tables 2 and 3 of the paper's section 3, with our own runs and what they are compared with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.metrics import EM, F1
from shoulders.evaluation.report import (
    NONE,
    check_comparable,
    headline,
    interval_or_dash,
    metric_label,
    number,
    origin,
    percent,
    signed_interval,
)
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Interval, average_interval, difference_interval
from shoulders.paper.recursion_numbers import BARE, by_split, check_same_metric, label_of, metric_of, untrained_way
from shoulders.paper.tables import section, write_page
from shoulders.retrieval.search import DENSE, HYBRID, RANKS, SPARSE
from shoulders.scaffolds.base import KINDS

CAPTIONS = {plots.READERS: "score of each reader with its interval, and how often an answer was in what it read"}
METHODS = {  # names by kind; other scaffolds have their label
    "soft_prompt": "frozen LM, prompt-tuned",
    "adaptive": "frozen LM, adaptive passes",
    "lora": "LoRA",
    "prefix_tuning": "prefix tuning",
    "full": "fine-tuned",
    "fid": "FiD, fine-tuned",
    "extractive": "extractive reader",
}
RERANKING_KEYS = ("reranker", "retriever_weight", "store")  # values of evidence that only re-ranked runs have
WORDS = ("run", "method", "LM", "retriever", "re-ranker")  # columns


@dataclass(frozen=True, slots=True)
class ReaderScores:
    """The scores of one run, with the method and the passages that they come from.

    Attributes:
        method: the reader's method.
        backbone: name of the frozen model.
        retriever: the retriever; "oracle" for annotated passages, a dash for none.
        reranked: whether a re-ranker ordered the passages.
        recall: percentage of questions with an answer in the passages read ("Recall @ J1 input"), if any were read.
        packed: average number of passages read for a question.
        scores: by metric.
        gap: paired difference from the first run of the table, by the deciding metric; None for that run.
    """

    result: Result
    method: str
    backbone: str
    retriever: str
    reranked: bool
    recall: float | None
    packed: float | None
    scores: Mapping[str, Interval]
    gap: Interval | None

    @property
    def without_reranker(self) -> tuple[str, str]:
        """Method and recipe values other than the re-ranker's: equal for a run and the same one without a re-ranker."""
        recipe = {key: value for key, value in self.result.content["recipe"].items() if key not in ("name", "about")}
        evidence = {key: value for key, value in (recipe.get("evidence") or {}).items() if key not in RERANKING_KEYS}
        return self.method, json.dumps({**recipe, "evidence": evidence}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class ReaderTable:
    """The runs that were measured on one split, all on the same examples."""

    split: str
    metric: str
    rows: Sequence[ReaderScores]

    @property
    def reranking(self) -> list[tuple[ReaderScores, ReaderScores]]:
        """Each run with a re-ranker, and the same run without."""
        plain = {row.without_reranker: row for row in self.rows if not row.reranked}
        return [
            (row, plain[row.without_reranker]) for row in self.rows if row.reranked and row.without_reranker in plain
        ]


def write_reader_report(results: Sequence[Result], folder: Path) -> tuple[Path, str]:
    """Write tables, numbers and a plot of readers; return the path of the page and a summary.

    Raises:
        UsageError: there is no run, or two of one split were measured on different examples or by different metrics.
        SaveFailed: the folder cannot be written.
    """
    tables = reader_tables(results)
    summary = [line for table in tables for line in _summary(table)]

    def draw() -> Sequence[str]:
        return [plots.draw_readers({table.split: _bars(table) for table in tables}, folder)]

    def parts(drawn: Sequence[str]) -> Sequence[str]:
        return ["# A frozen reader", *summary, *map(_section, tables), *drawn]

    numbers = {
        "tables": [_as_json(table) for table in tables],
        "runs": {result.name: origin(result.content) for result in results},
    }
    return write_page(folder, "reader", draw, parts, numbers, CAPTIONS), "\n".join(summary)


def reader_tables(results: Sequence[Result]) -> list[ReaderTable]:
    """Return a table for each split that runs were measured on, in the order of the results.

    Raises:
        UsageError: there is no result, or two of one split were measured on different examples or by different metrics.
    """
    check_comparable(results[:1])
    found: list[ReaderTable] = []
    for split, some in by_split(results).items():
        check_same_metric(some)
        found.append(ReaderTable(split, metric_of(some[0]), [_row(result, some[0]) for result in some]))
    return found


def _row(result: Result, first: Result) -> ReaderScores:
    content = result.content
    evidence = content["recipe"].get("evidence") or {}
    retrieval = content.get("retrieval") or {}
    names = (metric_of(result), EM.name, F1.name)
    measured = {name: rows for name in names if (rows := result.measured_by(name))}
    return ReaderScores(
        result,
        method_of(content),
        content["backbone"]["name"],
        open_retriever(evidence),
        bool(evidence.get("reranker")),
        retrieval.get("recall_at_input"),
        retrieval.get("packed"),
        {name: average_interval(rows) for name, rows in measured.items()},
        None if result is first else difference_interval(result.measured, first.measured),
    )


def method_of(content: Mapping[str, Any]) -> str:
    """Return the reader's method, by the kind of what was trained; unknown kinds keep their own name."""
    rival = (content["recipe"].get("rival") or {}).get("kind")
    kind = rival if rival and content.get("trained") else content["scaffold"]["kind"]
    if kind == BARE:
        return f"frozen LM, {untrained_way(content)}"
    return METHODS.get(kind) or (f"frozen LM, {label_of(kind)}" if kind in KINDS else str(kind))


def open_retriever(evidence: Mapping[str, Any]) -> str:
    """Return the source of the passages, by the recipe's `evidence`."""
    kind = evidence.get("kind") or ""
    if kind == "oracle":
        others = evidence.get("distractors", 0)
        return f"oracle, {others} distractors" if others else "oracle"
    if kind != "retrieved":
        return kind or NONE
    name = str(evidence.get("retriever") or SPARSE)
    dense = str(evidence.get("dense") or "dense")
    return {SPARSE: "BM25", DENSE: dense, HYBRID: f"{dense} + BM25", RANKS: f"{dense} + BM25 (ranks)"}.get(name, name)


def _summary(table: ReaderTable) -> list[str]:
    """Return which reader is ahead, and the gain from each re-ranker."""
    lines = [f"On {table.split}: {headline([row.result for row in table.rows])}"]
    for row, plain in table.reranking:
        gap = difference_interval(row.result.measured, plain.result.measured)
        recall = ""
        if row.recall is not None and plain.recall is not None:
            recall = f", recall at the reader's input from {plain.recall:.1f} to {row.recall:.1f}"
        lines.append(
            f"Re-ranking what {row.retriever} finds: {metric_label(table.metric)} {signed_interval(gap)} "
            f"({row.result.name} over {plain.result.name}, paired){recall}."
        )
    return lines


def _section(table: ReaderTable) -> str:
    """Return tables 2 and 3 of the paper in one."""
    first = table.rows[0].result
    title = f"Readers on {table.split}: {first.content['examples']:,} examples (tables 2 and 3 of the paper)"
    return section(title, [_cells(row, table) for row in table.rows], WORDS)


def _cells(row: ReaderScores, table: ReaderTable) -> dict[str, str]:
    """Return the cells of a run."""
    metrics = dict.fromkeys(name for other in table.rows for name in other.scores)
    cells = {
        "run": row.result.name,
        "method": row.method,
        "LM": row.backbone,
        "retriever": row.retriever,
        "re-ranker": _reranker(row),
        "recall @ input": percent(row.recall),
        "passages": percent(row.packed),
        "trained parameters": number(row.result.content.get("trained")),
        **{f"{metric_label(metric)} [95% interval]": interval_or_dash(row.scores.get(metric)) for metric in metrics},
    }
    if len(table.rows) > 1:
        cells[f"{metric_label(table.metric)} over {table.rows[0].result.name}, paired"] = signed_interval(row.gap)
    return cells


def _reranker(row: ReaderScores) -> str:
    """Return whether a re-ranker ordered the passages, and the weight of the retriever's scores beside its own."""
    if not row.reranked:
        return NONE if row.recall is None else "no"
    weight = row.result.content["recipe"]["evidence"].get("retriever_weight")
    return f"yes, with {weight:g} x the retriever's" if weight else "yes"


def _bars(table: ReaderTable) -> list[plots.Bar]:
    return [plots.Bar(row.result.name, row.scores[table.metric], row.recall) for row in table.rows]


def _as_json(table: ReaderTable) -> dict[str, Any]:
    return {
        "split": table.split,
        "metric": table.metric,
        "rows": [_row_as_json(row) for row in table.rows],
        "reranking": [
            {
                "run": row.result.name,
                "over": plain.result.name,
                "gap": asdict(difference_interval(row.result.measured, plain.result.measured)),
            }
            for row, plain in table.reranking
        ],
    }


def _row_as_json(row: ReaderScores) -> dict[str, Any]:
    return {
        "run": row.result.name,
        "method": row.method,
        "backbone": row.backbone,
        "retriever": row.retriever,
        "reranked": row.reranked,
        "recall_at_input": row.recall,
        "packed": row.packed,
        "trained": row.result.content.get("trained"),
        "scores": {name: asdict(interval) for name, interval in row.scores.items()},
        "gap": row.gap and asdict(row.gap),
    }
