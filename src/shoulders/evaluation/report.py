"""The comparison of several runs: Markdown tables, JSON, plots and a self-contained HTML page."""

import base64
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from shoulders.errors import UsageError
from shoulders.evaluation import plots
from shoulders.evaluation.metrics import EM, F1
from shoulders.evaluation.results import Result, label_of, metrics_of_tasks
from shoulders.evaluation.statistics import Interval, average_interval, difference_interval
from shoulders.store.files import save_failed, write_json

ORIGIN = ("recipe", "backbone", "scaffold", "commit", "dirty", "versions", "machine", "time", "examples_hash")
NONE = "\N{EN DASH}"
CALLED = {EM.name: "EM", F1.name: "F1"}


def markdown(columns: Mapping[str, Sequence[str]], words: Collection[str]) -> str:
    """Return a Markdown table of columns; those in `words` are aligned to the left, the others to the right."""
    return markdown_rows(list(columns), zip(*columns.values(), strict=True), [name in words for name in columns])


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[bool]) -> str:
    """Return a Markdown table of rows; `left` says which columns are aligned to the left."""
    lines = [header, ["---" if one else "---:" for one in left], *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def metric_label(metric: str) -> str:
    """Return the name of a metric as papers write it."""
    return CALLED.get(metric, metric)


def number(value: int | None) -> str:
    """Return a count as text, or a dash for None."""
    return NONE if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """Return a percentage or average as text, or a dash for None."""
    return NONE if value is None else f"{value:.1f}"


def gigabytes(value: int | None) -> str:
    """Return bytes in gigabytes as text, or a dash for None."""
    return NONE if value is None else f"{value / 1e9:.1f}"


def interval_or_dash(interval: Interval | None) -> str:
    """Return a score with its interval as text, or a dash for None."""
    return str(interval) if interval else NONE


def signed_interval(gap: Interval | None) -> str:
    """Return a difference with its interval as text, or a dash for None."""
    return f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]" if gap else NONE


def origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a result, as reports store it."""
    return {key: content[key] for key in ORIGIN if key in content}


PAGE, TABLE, SCORES = "report.html", "scores.md", "scores.json"
ALT = {
    plots.AVERAGE: "average score of each scaffold with its interval",
    plots.TASKS: "score of each task by scaffold",
    plots.CURVES: "training loss over examples seen",
}


def write_report(results: Sequence[Result], folder: Path, title: str = "shoulders: scaffolds compared") -> Path:
    """Write the report of some results, and return the path of its HTML page.

    Raises:
        UsageError: the results were not measured on the same examples, or two have the same name.
        SaveFailed: the folder cannot be written.
    """
    check_comparable(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw(results, folder)
        (folder / TABLE).write_text(results_table(results), encoding="utf-8")
        (folder / PAGE).write_text(_page(results, title, folder, drawn), encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    write_json(folder / SCORES, {result.name: dict(result.content) for result in results})
    return folder / PAGE


def headline(results: Sequence[Result]) -> str:
    """Return sentences on the best result, its lead over each other, and the intervals."""
    first, *others = sorted(results, key=lambda result: result.content["average"], reverse=True)
    sentences = [f"{first.name} is ahead with {first.content['average']:.1f}."]
    for other in others:
        gap = difference_interval(first.measured, other.measured)
        sure = "" if gap.low > 0 else ", which may be chance"
        sentences.append(f"Over {other.name}: {gap.value:+.1f} (95% interval {gap.low:+.1f} to {gap.high:+.1f}{sure}).")
    return " ".join(sentences)


def gains(results: Sequence[Result], base: Result) -> str:
    """Return a sentence on the difference of each result to a base, with intervals."""
    parts = []
    for result in results:
        if result is not base:
            gap = difference_interval(result.measured, base.measured)
            parts.append(f"{result.name} {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})")
    return f"Over {base.name}, with 95% intervals: {', '.join(parts)}."


def results_table(results: Sequence[Result]) -> str:
    """Return the scores as a Markdown table."""
    intervals = _intervals(results)
    rows = [
        *([row["task"], row["cluster"], row["metric"], *map(percent, row["values"])] for row in _rows(results)),
        ["**average**", "", "", *(f"**{one.value:.1f}**" for one in intervals)],
        ["95% interval", "", "", *(f"{one.low:.1f} to {one.high:.1f}" for one in intervals)],
    ]
    header = ["task", "cluster", "metric", *(result.name for result in results)]
    lines = [markdown_rows(header, rows, [True] * 3 + [False] * len(results))]
    if unmeasured := _unmeasured(results):
        lines.append(f"\nUnmeasured, because there is no such split: {', '.join(unmeasured)}.")
    lines.append(f"\n{results[0].content['examples']} examples. {headline(results)}\n")
    return "\n".join(lines)


def check_comparable(results: Sequence[Result]) -> None:
    """Raise `UsageError` for no results, for two with the same name, and for results of different examples."""
    if not results:
        raise UsageError("a report needs at least one measured run")
    for name, count in Counter(result.name for result in results).items():
        if count > 1:
            raise UsageError(f"{name!r} is named twice: name each run once")
    for result in results:
        if not _same_examples(result, results[0]):
            raise UsageError(
                f"{result.name} and {results[0].name} were measured on different examples"
                f"{_apart(result, results[0])}: measure both with the same suite and test values (shoulders evaluate "
                "... --out)"
            )


def _apart(one: Result, other: Result) -> str:
    """Return the tasks that only one of two results has, as text."""
    tasks = [dict.fromkeys(row["task"] for row in result.content["wordings"]) for result in (one, other)]
    alone = [[task for task in own if task not in others] for own, others in (tasks, tasks[::-1])]
    parts = [
        f"{', '.join(some)} only by {result.name}" for some, result in zip(alone, (one, other), strict=True) if some
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _same_examples(one: Result, other: Result) -> bool:
    """Return whether two results are of the same examples, by hash; by size if a result records no hash."""
    hashes = [result.content.get("examples_hash") for result in (one, other)]
    shapes = [
        [(row["task"], row["wording"], row["examples"]) for row in result.content["wordings"]]
        for result in (one, other)
    ]
    return shapes[0] == shapes[1] and (hashes[0] == hashes[1] or None in hashes)


def _page(results: Sequence[Result], title: str, folder: Path, drawn: Sequence[str]) -> str:
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    images = [{"alt": ALT[name], "data": base64.b64encode((folder / name).read_bytes()).decode()} for name in drawn]
    clusters = {
        name: [result.content["clusters"][name] for result in results] for name in results[0].content["clusters"]
    }
    return environment.from_string(source).render(
        title=title,
        headline=headline(results),
        plots=images,
        results=results,
        examples=results[0].content["examples"],
        rows=_rows(results),
        intervals=_intervals(results),
        unmeasured=_unmeasured(results),
        clusters=clusters,
        samples=_samples(results),
        provenance=[_provenance(result.content) for result in results],
        recipes=[json.dumps(result.content["recipe"], indent=1) for result in results],
    )


def _unmeasured(results: Sequence[Result]) -> list[str]:
    """Return the tasks or wordings without the split, which are the same for all results."""
    return results[0].content.get("unmeasured", [])


def _intervals(results: Sequence[Result]) -> list[Interval]:
    return [average_interval(result.measured) for result in results]


def _rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the rows of the table, one for each task."""
    wordings = results[0].content["wordings"]
    metrics = metrics_of_tasks((row["task"], row["metric"]) for row in wordings)
    clusters = {row["task"]: row["cluster"] for row in wordings}
    found = []
    for task, metric in metrics.items():
        values = [result.content["tasks"][task] for result in results]
        found.append({"task": task, "cluster": clusters[task], "metric": metric, "values": values, "best": max(values)})
    return found


def _samples(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return sample questions with the answers of all results."""
    found = []
    for number, row in enumerate(results[0].content["wordings"]):
        for place, sample in enumerate(row["samples"]):
            answers = [result.content["wordings"][number]["samples"][place]["answer"] for result in results]
            found.append({**sample, "task": row["task"], "answers": answers})
    return found


def _provenance(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance of a result as pairs of label and text."""
    backbone, machine = content["backbone"], content["machine"]
    return [
        *_scaffold(content.get("scaffold", {})),
        ("backbone", f"{backbone['name']} ({backbone['dtype']}, fingerprint {backbone['fingerprint'][:12]})"),
        ("trained parameters", f"{content['trained']:,}"),
        ("commit", f"{content['commit'] or 'not in a checkout'}{' with changes' if content['dirty'] else ''}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in content["versions"].items())),
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"),
        ("measured", content["time"]),
    ]


def _scaffold(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return labels and texts of the scaffold and its encoder, if they are recorded."""
    if not measured:
        return []
    encoder = measured["encoder"]
    text = f"{label_of(measured['kind'])} {measured['name'] or ''} (fingerprint {measured['fingerprint'][:12]})"
    read = [("encoder", f"{encoder['name']} (fingerprint {encoder['fingerprint'][:12]})")] if encoder else []
    return [("scaffold", text), *read]
