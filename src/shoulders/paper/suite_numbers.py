"""Methods compared on a suite: the numbers of the paper's tables 1, 7 and 9 and of figure 3, from results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from shoulders.data.mixture import used_count
from shoulders.data.tasks import DEV
from shoulders.errors import UsageError
from shoulders.evaluation.report import check_comparable
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Average, average
from shoulders.paper.recursion_numbers import (
    BARE,
    by_split,
    check_same_metric,
    kind_of,
    label_of,
    metric_of,
    untrained_way,
)
from shoulders.scaffolds.base import KINDS
from shoulders.store.files import flatten, read_json

LABELS = {
    "adaptive": "adaptive passes",
    "lora": "LoRA",
    "prefix_tuning": "prefix tuning",
    "full": "full fine-tuning",
    "fid": "FiD",
}  # other scaffolds have their own label
ON_OFF = ("on", "off")  # with what was trained, and with that taken off again
SEED, LENGTH = "training.seed", "scaffold.length"
RATES = ("training.learning_rate", "training.base_learning_rate", "rival.learning_rate")
# Values of a recipe that do not make another method: names, the seed, and how it was measured.
IGNORED = ("name", "about", SEED, "test.")
USUAL = {"backbone.chat": "auto", "training.average": "tokens"}  # values that older recipes lack
WITHOUT_TRAINING = ("backbone.", "evidence.")  # the only values that matter if nothing is trained
FORGETTING_KEYS = {"before", "unchanged", "checksums", "text"}


@dataclass(frozen=True, slots=True)
class ForgettingResult:
    """What training made a language model forget: a file that `shoulders forget --out` wrote."""

    name: str
    content: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Last part of the name of the text that was read."""
        return self.content["text"].rstrip("/").rsplit("/", maxsplit=1)[-1]

    @property
    def ratios(self) -> dict[str, float | None]:
        """Perplexity with what was trained on, and off again, divided by that before; None where it was not measured.

        Older files hold one ratio: of a scaffold taken off, or of a rival on.
        """
        content = self.content
        if "ratios" in content:
            return content["ratios"]
        if not content["unchanged"]:
            return {"on": content["ratio"], "off": None}
        attached = content["attached"]
        return {"on": attached and attached["perplexity"] / content["before"]["perplexity"], "off": content["ratio"]}


@dataclass(frozen=True, slots=True)
class Template:
    """The score of one method on a data set in one template."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class DataSet:
    """The score of one method on a data set, as the mean over seeds.

    Attributes:
        score: median over the templates.
        templates: score in each template.
    """

    name: str
    cluster: str
    metric: str
    examples: int
    score: float
    templates: Sequence[Template]

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest score in a template."""
        scores = [template.score for template in self.templates]
        return min(scores), max(scores)


@dataclass(frozen=True, slots=True)
class MethodScores:
    """The scores of one method, from runs that differ only in the seed.

    Attributes:
        average: average over data sets, as the mean over seeds.
        forgotten: what its runs made their language models forget, in the order of the runs.
    """

    name: str
    runs: Sequence[Result]
    average: Average
    forgotten: Sequence[ForgettingResult]

    @property
    def content(self) -> Mapping[str, Any]:
        """Results of the first run."""
        return self.runs[0].content

    @property
    def seeds(self) -> dict[int, float]:
        """Average score of each seed."""
        return {seed_of(run): run.content["average"] for run in self.runs}

    @property
    def clusters(self) -> dict[str, float]:
        """Score of each cluster: the mean over its data sets."""
        return {name: mean(run.content["clusters"][name] for run in self.runs) for name in self.content["clusters"]}

    @property
    def data_sets(self) -> list[DataSet]:
        """Scores on each data set of the suite."""
        return [self._data_set(name) for name in self.content["tasks"]]

    @property
    def seen(self) -> int | None:
        """Training examples seen, repeated ones counted again; None if nothing is trained."""
        return self.runs[0].seen if self.content["trained"] else None

    @property
    def trained_on(self) -> dict[str, int]:
        """Training examples of the first run by data set; empty if nothing was trained, or in older results."""
        return {name: used_count(counts) for name, counts in self.content.get("trained_on", {}).items()}

    @property
    def seconds(self) -> float | None:
        """Seconds of training, averaged over the seeds; None in older results."""
        costs = self._costs("seconds")
        return mean(costs) if costs else None

    @property
    def peak_bytes(self) -> int | None:
        """Largest peak memory of training; None in older results."""
        return max(self._costs("peak_bytes"), default=None)

    @property
    def ratios(self) -> dict[str, dict[str, float | None]]:
        """Ratio of perplexity after training, on and off, to that before it, by text, as the mean over seeds."""
        found: dict[str, list[dict[str, float | None]]] = {}
        for one in self.forgotten:
            found.setdefault(one.text, []).append(one.ratios)
        return {text: {name: _mean([one[name] for one in some]) for name in ON_OFF} for text, some in found.items()}

    @property
    def unchanged(self) -> bool | None:
        """Whether every bit of the model is as before with what was trained off, in all runs; None if not measured."""
        return all(one.content["unchanged"] for one in self.forgotten) if self.forgotten else None

    def _costs(self, what: str) -> list[Any]:
        costs = [run.content.get("cost", {}).get(what) for run in self.runs]
        return [cost for cost in costs if cost is not None]

    def _data_set(self, name: str) -> DataSet:
        wordings = [[row for row in run.content["wordings"] if row["task"] == name] for run in self.runs]
        templates = [
            Template(rows[0]["wording"], mean(row["scores"][row["metric"]] for row in rows))
            for rows in zip(*wordings, strict=True)
        ]
        first = wordings[0]
        metrics = ", ".join(dict.fromkeys(row["metric"] for row in first))
        examples = sum(row["examples"] for row in first)
        score = mean(run.content["tasks"][name] for run in self.runs)
        return DataSet(name, first[0]["cluster"], metrics, examples, score, templates)


@dataclass(frozen=True, slots=True)
class LengthScores:
    """Scores by length of the prompt (the paper, table 9).

    Attributes:
        columns: names of the methods without their length.
        scores: scores by length and column. On the development part only the best learning rate is kept (the paper,
            section 2.2); on other parts each learning rate has its own column.
    """

    columns: Sequence[str]
    scores: Mapping[int, Mapping[str, MethodScores]]


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """Methods measured on the same examples of one split."""

    split: str
    metric: str
    rows: Sequence[MethodScores]
    lengths: LengthScores | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Development scores of a method during its training (the paper, figure 3).

    Attributes:
        seeds: for each run, pairs of training examples seen and average score.
    """

    name: str
    seeds: Sequence[Sequence[tuple[int, float]]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def read_forgetting(path: Path, name: str) -> ForgettingResult | None:
    """Return the contents of a file of `shoulders forget --out`; None for anything else."""
    if not path.is_file():
        return None
    content = read_json(path)
    return ForgettingResult(name, content) if set(content) >= FORGETTING_KEYS else None


def suite_tables(results: Sequence[Result], forgotten: Sequence[ForgettingResult] = ()) -> list[SuiteTable]:
    """Return a table for each split that runs were measured on, in the order of the results.

    Raises:
        UsageError: there is no result; two of one split were measured on different examples or by different metrics, or
            are of one method and one seed; or a file of `shoulders forget` belongs to a run that is not there.
    """
    check_comparable(results[:1])
    _check_known(forgotten, results)
    names = method_names(results)
    return [_table(split, some, names, forgotten) for split, some in by_split(results).items()]


def method_names(results: Sequence[Result]) -> dict[str, str]:
    """Return the name of each result's method; runs that differ only in the seed have the same one.

    A name is the label of the method, followed by recipe values if several methods have the same label.
    """
    return _distinguished({result.name: (_method_label(result, results), method_values(result)) for result in results})


def method_values(result: Result) -> dict[str, Any]:
    """Return the recipe values that define a method, by dotted key: without names, the seed, and how it was measured.

    Values that are empty, false, 0 or as usual are left out, because older recipes lack them.
    """
    values = flatten(result.content["recipe"])
    ignored = IGNORED if values.get("teacher.evidence.kind") else (*IGNORED, "teacher.")
    kept = {
        key: value for key, value in values.items() if value and value != USUAL.get(key) and not key.startswith(ignored)
    }
    if kind_of(result.content) == BARE:
        kept = {key: value for key, value in kept.items() if key.startswith(WITHOUT_TRAINING)}
    return {**kept, "backbone.fingerprint": result.content["backbone"]["fingerprint"][:12]}


def seed_of(result: Result) -> int:
    """Return the seed of a run's training."""
    return result.content["recipe"]["training"]["seed"]


def development_curves(results: Sequence[Result]) -> list[Curve]:
    """Return the development scores of each trained method; a run that was measured twice counts once."""
    names = method_names(results)
    found: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for result in results:
        batch = result.content["recipe"]["training"]["batch_size"]
        if result.content["trained"] and result.development:
            points = [(step * batch, score) for step, score in result.development]
            found.setdefault(names[result.name], {})[seed_of(result)] = points
    return [Curve(name, list(seeds.values())) for name, seeds in found.items()]


def untrained_scores(results: Sequence[Result]) -> dict[str, float]:
    """Return the scores of methods without a curve, if they were measured on the examples of the curves."""
    plans = [_measured_part(result.content["recipe"]["development"]) for result in results if result.development]
    names = method_names(results)
    drawn = {curve.name for curve in development_curves(results)}
    found: dict[str, list[float]] = {}
    for result in results:
        plan = _measured_part(result.content["recipe"]["test"])
        if plans and names[result.name] not in drawn and all(plan == other for other in plans):
            found.setdefault(names[result.name], []).append(result.content["average"])
    return {name: mean(scores) for name, scores in found.items()}


def _measured_part(plan: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values that decide which examples are measured."""
    return tuple(plan[key] for key in ("split", "limit", "wordings", "seed"))


def _table(
    split: str, results: Sequence[Result], names: Mapping[str, str], forgotten: Sequence[ForgettingResult]
) -> SuiteTable:
    check_same_metric(results)
    runs: dict[str, list[Result]] = {}
    for result in results:
        runs.setdefault(names[result.name], []).append(result)
    rows = [_row(name, some, forgotten) for name, some in runs.items()]
    return SuiteTable(split, metric_of(results[0]), rows, _lengths(rows, split))


def _row(name: str, runs: Sequence[Result], forgotten: Sequence[ForgettingResult]) -> MethodScores:
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if seed_of(run) == seed_of(other):
                raise UsageError(
                    f"{other.name} and {run.name} are of one method ({name}) and one seed ({seed_of(run)}): name one "
                    "of them, or measure each by its own recipe (leave --recipe out)"
                )
    own = [one for run in runs for one in forgotten if _scaffold(one.content) == _scaffold(run.content)]
    return MethodScores(name, runs, average([run.measured for run in runs]), own)


def _check_known(forgotten: Sequence[ForgettingResult], results: Sequence[Result]) -> None:
    known = [_scaffold(result.content) for result in results]
    for one in forgotten:
        if _scaffold(one.content) not in known:
            raise UsageError(
                f"{one.name} tells what {one.content['scaffold']['name'] or 'a run'} forgot, whose scores are not "
                "among the results: name that run, too"
            )


def _scaffold(content: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fingerprints of the model and of the scaffold or rival; older results lack the second."""
    return content["backbone"]["fingerprint"], content.get("scaffold", {}).get("fingerprint")


def _lengths(rows: Sequence[MethodScores], split: str) -> LengthScores | None:
    """Return scores by prompt length; None if all prompts have the same length."""
    prompted = [row for row in rows if _has_length(kind_of(row.content))]
    values = {row.name: method_values(row.runs[0]) for row in prompted}
    lengths = sorted({own[LENGTH] for own in values.values()})
    if len(lengths) < 2:
        return None
    left_out = (LENGTH, *(RATES if split == DEV else ()))
    others = {name: {key: own[key] for key in own if key not in left_out} for name, own in values.items()}
    runs = [row.runs[0] for row in rows]
    columns = _distinguished({row.name: (_method_label(row.runs[0], runs), others[row.name]) for row in prompted})
    scores: dict[int, dict[str, MethodScores]] = {length: {} for length in lengths}
    for row in sorted(prompted, key=lambda row: row.average.value):  # the best comes last, and is kept
        scores[values[row.name][LENGTH]][columns[row.name]] = row
    return LengthScores(list(dict.fromkeys(columns.values())), scores)


def _has_length(kind: str) -> bool:
    """Whether scaffolds of a kind have a prompt with a length."""
    return kind in KINDS and any(item.name == "length" for item in fields(KINDS[kind].Config))


def _method_label(result: Result, among: Sequence[Result]) -> str:
    """Return the label of a method, with its encoder, and with its language model if there are several."""
    content = result.content
    kind = kind_of(content)
    name = LABELS.get(kind) or label_of(kind)
    if kind == BARE and (way := untrained_way(content)) != BARE:
        name = f"{way} LM"
    if encoder := _encoder(content):
        name = f"{name} with {encoder}"
    if len({other.content["backbone"]["fingerprint"] for other in among}) > 1:
        name = f"{name}, {_short_name(content['backbone']['name'])}"
    return name


def _encoder(content: Mapping[str, Any]) -> str:
    """Return the short name of the encoder of an input-dependent prompt."""
    if "scaffold" not in content:  # older results
        return _short_name(content["recipe"]["scaffold"].get("encoder", "")) if content["trained"] else ""
    encoder = content["scaffold"]["encoder"]
    if not encoder:
        return ""
    itself = encoder["fingerprint"] == content["backbone"]["fingerprint"]
    return "the LM as encoder" if itself else _short_name(encoder["name"])


def _short_name(name: str) -> str:
    """Return the last part of a model's name."""
    return name.rstrip("/").rsplit("/", maxsplit=1)[-1].removeprefix("package:")


def _distinguished(methods: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return distinct names of methods, from labels and values: equal labels get the values that differ."""
    found: dict[str, str] = {}
    for key, (label, own) in methods.items():
        alike = [values for other, values in methods.values() if other == label]
        names = dict.fromkeys(name for values in alike for name in values)
        apart = [name for name in names if any(values.get(name) != own.get(name) for values in alike)]
        last = [name.rpartition(".")[2] for name in apart]
        short = {name: one if last.count(one) == 1 else name for one, name in zip(last, apart, strict=True)}
        chosen = ", ".join(f"{short[name]}={_value(own[name])}" for name in apart if name in own)
        found[key] = f"{label} ({chosen})" if chosen else label
    return found


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
