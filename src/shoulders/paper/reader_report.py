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
    called,
    check_comparable,
    headline,
    markdown,
    number,
    or_none,
    origin,
    percent,
    signed,
)
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Interval, average_interval, difference_interval
from shoulders.paper.recursion_numbers import by_split, check_same_metric, label_of, metric_of
from shoulders.retrieval.search import DENSE, HYBRID, RANKS, SPARSE
from shoulders.scaffolds.base import KINDS
from shoulders.store.files import save_failed, write_json

PAGE, NUMBERS = "reader.md", "reader.json"
ALT = "score of each reader with its interval, and how often an answer was in what it read"
METHODS = {  # a scaffold of any other kind goes by its label
    "bare": "frozen LM, bare",
    "soft_prompt": "frozen LM, prompt-tuned",
    "adaptive": "frozen LM, adaptive passes",
    "lora": "LoRA",
    "prefix_tuning": "prefix tuning",
    "full": "fine-tuned",
    "extractive": "extractive reader",
}
APART = (
    "reranker",
    "retriever_weight",
    "store",
)  # values of evidence that tell a run from the same one without a re-ranker
WORDS = ("run", "method", "LM", "retriever", "re-ranker")  # columns


@dataclass(frozen=True, slots=True)
class Row:
    """One run.

    Attributes:
        method: what reads.
        backbone: its name.
        retriever: what found the passages; "oracle" for annotated ones, a dash for none.
        reranked: whether a re-ranker put them in order.
        recall: percentage of questions with an answer in what was read ("Recall @ J1 input"); None without passages.
        packed: passages read for a question, on average.
        scores: by metric.
        gap: over the first run of the table, paired, by the deciding metric; None for that run.
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
    def beside(self) -> tuple[str, str]:
        """What a run has in common with the same one without its re-ranker: its recipe's values but for that."""
        recipe = {key: value for key, value in self.result.content["recipe"].items() if key not in ("name", "about")}
        evidence = {key: value for key, value in (recipe.get("evidence") or {}).items() if key not in APART}
        return self.method, json.dumps({**recipe, "evidence": evidence}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Table:
    """The runs that were measured on one split, all on the same examples."""

    split: str
    metric: str
    rows: Sequence[Row]

    @property
    def reranking(self) -> list[tuple[Row, Row]]:
        """Each run with a re-ranker, and the same without."""
        plain = {row.beside: row for row in self.rows if not row.reranked}
        return [(row, plain[row.beside]) for row in self.rows if row.reranked and row.beside in plain]


def write_reader_report(results: Sequence[Result], folder: Path) -> tuple[Path, str]:
    """Write tables, numbers and a plot of readers; returns the path of the tables and a summary.

    Raises:
        UsageError: there is no run, or two of one split were measured on different examples or by different metrics.
        SaveFailed: the folder cannot be written.
    """
    measured = reader_tables(results)
    told = [line for table in measured for line in _told(table)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw_readers({table.split: _bars(table) for table in measured}, folder)
        parts = ["# A frozen reader", *told, *map(_page, measured), f"![{ALT}]({drawn})"]
        (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    write_json(
        folder / NUMBERS,
        {
            "tables": [_as_json(table) for table in measured],
            "runs": {result.name: origin(result.content) for result in results},
        },
    )
    return folder / PAGE, "\n".join(told)


def reader_tables(results: Sequence[Result]) -> list[Table]:
    """A table for each split that something was measured on, in the order of the results.

    Raises:
        UsageError: there is no result, or two of one split were measured on different examples or by different metrics.
    """
    check_comparable(results[:1])
    found: list[Table] = []
    for split, some in by_split(results).items():
        check_same_metric(some)
        found.append(Table(split, metric_of(some[0]), [_row(result, some[0]) for result in some]))
    return found


def _row(result: Result, first: Result) -> Row:
    content = result.content
    evidence = content["recipe"].get("evidence") or {}
    retrieval = content.get("retrieval") or {}
    names = (metric_of(result), EM.name, F1.name)
    measured = {name: rows for name in names if (rows := result.measured_by(name))}
    return Row(
        result,
        method_of(content),
        content["backbone"]["name"],
        retriever_of(evidence),
        bool(evidence.get("reranker")),
        retrieval.get("recall_at_input"),
        retrieval.get("packed"),
        {name: average_interval(rows) for name, rows in measured.items()},
        None if result is first else difference_interval(result.measured, first.measured),
    )


def method_of(content: Mapping[str, Any]) -> str:
    """What read, by the kind of what was trained; kinds from elsewhere go by their own name."""
    rival = (content["recipe"].get("rival") or {}).get("kind")
    kind = rival if rival and content.get("trained") else content["scaffold"]["kind"]
    return METHODS.get(kind) or (f"frozen LM, {label_of(kind)}" if kind in KINDS else str(kind))


def retriever_of(evidence: Mapping[str, Any]) -> str:
    """What put passages before the questions, by the recipe's `evidence`."""
    kind = evidence.get("kind") or ""
    if kind == "oracle":
        others = evidence.get("distractors", 0)
        return f"oracle, {others} distractors" if others else "oracle"
    if kind != "retrieved":
        return kind or NONE
    name = str(evidence.get("retriever") or SPARSE)
    dense = str(evidence.get("dense") or "dense")
    return {SPARSE: "BM25", DENSE: dense, HYBRID: f"{dense} + BM25", RANKS: f"{dense} + BM25 (ranks)"}.get(name, name)


def _told(table: Table) -> list[str]:
    """Who is ahead, and what re-ranking is worth."""
    told = [f"On {table.split}: {headline([row.result for row in table.rows])}"]
    for row, plain in table.reranking:
        gap = difference_interval(row.result.measured, plain.result.measured)
        recall = ""
        if row.recall is not None and plain.recall is not None:
            recall = f", recall at the reader's input from {plain.recall:.1f} to {row.recall:.1f}"
        told.append(
            f"Re-ranking what {row.retriever} finds: {called(table.metric)} {signed(gap)} "
            f"({row.result.name} over {plain.result.name}, paired){recall}."
        )
    return told


def _page(table: Table) -> str:
    """Tables 2 and 3 of the paper in one."""
    rows = table.rows
    columns = {
        "run": [row.result.name for row in rows],
        "method": [row.method for row in rows],
        "LM": [row.backbone for row in rows],
        "retriever": [row.retriever for row in rows],
        "re-ranker": [_reranker(row) for row in rows],
        "recall @ input": [percent(row.recall) for row in rows],
        "passages": [percent(row.packed) for row in rows],
        "trained parameters": [number(row.result.content.get("trained")) for row in rows],
    }
    for metric in dict.fromkeys(name for row in rows for name in row.scores):
        columns[f"{called(metric)} [95% interval]"] = [or_none(row.scores.get(metric)) for row in rows]
    if len(rows) > 1:
        columns[f"{called(table.metric)} over {rows[0].result.name}, paired"] = [signed(row.gap) for row in rows]
    examples = rows[0].result.content["examples"]
    title = f"## Readers on {table.split}: {examples:,} examples (tables 2 and 3 of the paper)"
    return f"{title}\n\n{markdown(columns, WORDS)}"


def _reranker(row: Row) -> str:
    """Whether a re-ranker ordered the passages, and how much the retriever's scores counted beside its own."""
    if not row.reranked:
        return NONE if row.recall is None else "no"
    weight = row.result.content["recipe"]["evidence"].get("retriever_weight")
    return f"yes, with {weight:g} x the retriever's" if weight else "yes"


def _bars(table: Table) -> list[plots.Bar]:
    return [plots.Bar(row.result.name, row.scores[table.metric], row.recall) for row in table.rows]


def _as_json(table: Table) -> dict[str, Any]:
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


def _row_as_json(row: Row) -> dict[str, Any]:
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
