"""The report on a suite: tables 1, 7 and 9 and figure 3 of the paper's section 2 and appendix A, with our own runs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoulders.evaluation import plots
from shoulders.evaluation.report import NONE, gigabytes, markdown, number, origin, signed
from shoulders.evaluation.results import Result
from shoulders.paper.suite_numbers import DataSet, Forgotten, Lengths, Row, Table, curves, levels, suite_tables
from shoulders.store.files import save_failed, write_json

PAGE, NUMBERS = "suite.md", "suite.json"
ALT = {
    plots.SUITE: "score of each method by cluster",
    plots.DEVELOPMENT: "average development score over training examples (figure 3 of the paper)",
}
WORDS = ("method", "LM", "cluster", "data set", "metric", "LM unchanged", "row over column")  # columns
NOTE = (
    "The score of a data set is the median over its templates, of a cluster the mean over its data sets, and the "
    "average is over data sets. Of several seeds it is their mean. Intervals are 95% bootstraps over examples, paired "
    "for differences; how much seeds differ is not in them."
)


def write_suite_report(results: Sequence[Result], forgotten: Sequence[Forgotten], folder: Path) -> tuple[Path, str]:
    """Write tables, numbers and plots of methods on a suite; returns the path of the tables and a summary.

    Args:
        results: of any methods; those that differ in the seed alone are one.
        forgotten: by some of their runs; none will do.

    Raises:
        UsageError: the results cannot be compared (`suite_tables`).
        SaveFailed: the folder cannot be written.
    """
    measured = suite_tables(results, forgotten)
    told = [_told(table) for table in measured]
    found = curves(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        splits = {
            table.split: {row.name: {"average": row.average.value, **row.clusters} for row in table.rows}
            for table in measured
        }
        drawn = plots.draw_suite(splits, {one.name: one.seeds for one in found}, levels(results), folder)
        parts = [
            "# Methods on a suite",
            *told,
            NOTE,
            *[part for table in measured for part in _parts(table)],
            *[f"![{ALT[name]}]({name})" for name in drawn],
        ]
        (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    content = {
        "tables": [_as_json(table) for table in measured],
        "curves": [asdict(one) for one in found],
        "runs": {result.name: origin(result.content) for result in results},
        "forgotten": {one.name: origin(one.content) for one in forgotten},
    }
    write_json(folder / NUMBERS, content)
    return folder / PAGE, "\n".join(told)


def _told(table: Table) -> str:
    """Who is ahead, by how much, and how sure that is."""
    first, *others = sorted(table.rows, key=lambda row: row.average.value, reverse=True)
    told = [f"On {table.split}: {first.name} is ahead with {first.average.value:.1f}."]
    for other in others:
        gap = first.average.over(other.average)
        told.append(f"Over {other.name}: {signed(gap)}{'' if gap.low > 0 else ', which may be chance'}.")
    return " ".join(told)


def _parts(table: Table) -> list[str]:
    """The tables of one split, under their titles."""
    examples = table.rows[0].content["examples"]
    found = [
        f"## Methods on {table.split}: {examples:,} examples",
        _methods(table.rows),
        f"## By cluster on {table.split} (table 1 of the paper)",
        _clusters(table.rows),
    ]
    if len(table.rows) > 1:
        found += [f"## Differences on {table.split}: row over column, paired", _differences(table.rows)]
    found += [f"## By data set on {table.split} (table 7 of the paper)", _data_sets(table.rows)]
    if any(len(one.templates) > 1 for one in table.rows[0].data_sets):
        found.append("In brackets: the lowest and the highest score in a template.")
    if unmeasured := table.rows[0].content.get("unmeasured"):
        found.append(f"Unmeasured, because there is no such split: {', '.join(unmeasured)}.")
    if table.lengths:
        found += [f"## By prompt length on {table.split} (table 9 of the paper)", _lengths(table.lengths)]
    return found


def _methods(rows: Sequence[Row]) -> str:
    """What each method reaches, and at what price; columns that nothing is known for are left out."""
    columns = {
        "method": [row.name for row in rows],
        "LM": [row.content["backbone"]["name"] for row in rows],
        "average [95% interval]": [str(row.average.interval) for row in rows],
        "by seed": [", ".join(f"{seed}: {score:.1f}" for seed, score in row.seeds.items()) for row in rows],
        "trained parameters": [number(row.content["trained"]) for row in rows],
        "examples seen": [number(row.seen) for row in rows],
        "seconds": [NONE if row.seconds is None else f"{row.seconds:,.0f}" for row in rows],
        "peak memory, GB": [gigabytes(row.peak_bytes) for row in rows],
    }
    for text in dict.fromkeys(text for row in rows for text in row.ratios):
        columns[f"perplexity after / before on {text}"] = [
            f"{row.ratios[text]:.4f}" if text in row.ratios else NONE for row in rows
        ]
    columns["LM unchanged"] = [{True: "yes", False: "no", None: NONE}[row.unchanged] for row in rows]
    return markdown({name: cells for name, cells in columns.items() if set(cells) != {NONE}}, WORDS)


def _clusters(rows: Sequence[Row]) -> str:
    """Table 1 of the paper."""
    sets = [data_set.cluster for data_set in rows[0].data_sets]
    names = list(rows[0].clusters)
    columns = {
        "cluster": [*names, "**average over data sets**"],
        "data sets": [*[str(sets.count(name)) for name in names], str(len(sets))],
    }
    for row in rows:
        columns[row.name] = [*[f"{row.clusters[name]:.1f}" for name in names], f"**{row.average.value:.1f}**"]
    return markdown(columns, WORDS)


def _differences(rows: Sequence[Row]) -> str:
    columns = {"row over column": [row.name for row in rows]}
    for other in rows:
        columns[other.name] = [NONE if row is other else signed(row.average.over(other.average)) for row in rows]
    return markdown(columns, WORDS)


def _data_sets(rows: Sequence[Row]) -> str:
    """Table 7 of the paper, with the spread over templates."""
    first = rows[0].data_sets
    columns = {
        "cluster": [one.cluster for one in first],
        "data set": [one.name for one in first],
        "metric": [one.metric for one in first],
        "templates": [number(len(one.templates)) for one in first],
        "examples": [number(one.examples) for one in first],
        **_trained_on(rows, [one.name for one in first]),
    }
    for row in rows:
        columns[row.name] = [_spread(one) for one in row.data_sets]
    return markdown(columns, WORDS)


def _trained_on(rows: Sequence[Row], data_sets: Sequence[str]) -> dict[str, list[str]]:
    """Training examples of each data set: one column where all methods saw as many, else one for each method."""
    told = {row.name: [number(row.trained_on.get(name, 0)) for name in data_sets] for row in rows if row.trained_on}
    if len({tuple(counts) for counts in told.values()}) == 1:
        return {"trained on": next(iter(told.values()))}
    return {f"trained on, {name}": counts for name, counts in told.items()}


def _spread(one: DataSet) -> str:
    lowest, highest = one.spread
    return f"{one.score:.1f} [{lowest:.1f}, {highest:.1f}]" if len(one.templates) > 1 else f"{one.score:.1f}"


def _lengths(lengths: Lengths) -> str:
    """Table 9 of the paper."""
    columns = {"prompt length": [number(length) for length in lengths.scores]}
    for name in lengths.columns:
        found = [scores.get(name) for scores in lengths.scores.values()]
        columns[name] = [f"{row.average.value:.1f}" if row else NONE for row in found]
    return markdown(columns, WORDS)


def _as_json(table: Table) -> dict[str, Any]:
    lengths = table.lengths
    return {
        "split": table.split,
        "metric": table.metric,
        "examples": table.rows[0].content["examples"],
        "unmeasured": table.rows[0].content.get("unmeasured", []),
        "methods": [_row_as_json(row) for row in table.rows],
        "differences": [
            {"method": row.name, "over": other.name, "gap": asdict(row.average.over(other.average))}
            for row in table.rows
            for other in table.rows
            if row is not other
        ],
        "lengths": lengths
        and [
            {"length": length, "column": name, "method": row.name, "average": row.average.value}
            for length, scores in lengths.scores.items()
            for name, row in scores.items()
        ],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "method": row.name,
        "runs": [run.name for run in row.runs],
        "average": asdict(row.average.interval),
        "seeds": [{"seed": seed, "average": score} for seed, score in row.seeds.items()],
        "clusters": row.clusters,
        "data_sets": [asdict(one) for one in row.data_sets],
        "trained": row.content["trained"],
        "seen": row.seen,
        "trained_on": row.trained_on,
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "perplexity_ratio": row.ratios,
        "unchanged": row.unchanged,
    }
