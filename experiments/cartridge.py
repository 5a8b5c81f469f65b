"""A cartridge of a few articles against reading them: the same human questions, the same frozen model.

    python -m experiments.cartridge ../shared/data/odqa runs/odqa experiments/NNN-cartridge [KEY=VALUE ...]

The corpus is the first passages that SQuAD's development questions are about, the questions are these. A reader's
prompt is trained on other articles first, so that answers have the form that is scored; under it the model studies the
corpus and teaches. Rows: the model alone, the cartridge alone, all passages in context, BM25's passages, and both, each
with EM, tokens read, bytes of keys and values, and seconds to the first token. Finished rows are not measured again.
"""

import argparse
import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from transformers.utils import logging as transformers_logging

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.engine.batches import encode
from shoulders.engine.inference import Answering, answered
from shoulders.engine.precomputed import context_bytes
from shoulders.evaluation.protocol import evaluate
from shoulders.evaluation.report import markdown_rows
from shoulders.evidence.base import Evidence, with_evidence
from shoulders.evidence.choice import EvidenceChoice
from shoulders.evidence.packing import Packer
from shoulders.records import Passage, Question
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting
from shoulders.runs.build import load_backbone, load_tasks, new_evidence
from shoulders.runs.recipe import Recipe, SuiteChoice, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import Watch, result, train, training_summary
from shoulders.runs.self_study import studied
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.store.files import read_json, write_json

RUNS = Path("runs")
TIMED = 20  # questions whose first token is timed, one at a time


def main() -> None:
    """Prepare the corpus, train reader and cartridge, measure all rows, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of squad.{train,dev}.jsonl.gz and passages.jsonl.gz")
    parser.add_argument("index", type=Path, help="index of all passages, to train the reader on (shoulders index)")
    parser.add_argument("out", type=Path, help="folder of the experiment")
    parser.add_argument("values", nargs="*", help="values of the recipe `cartridge`, and of both recipes' backbone")
    parser.add_argument("--passages", type=int, default=24)
    parser.add_argument("--reader-steps", type=int, default=120)
    arguments = parser.parse_intermixed_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    runs = RUNS / arguments.out.name
    task = corpus(arguments.data, runs, arguments.passages)
    shared = [value for value in arguments.values if value.startswith("backbone.")]
    reading = with_overrides(
        recipe_named("reader"),
        [
            *shared, f"suite.source=qa:{arguments.data / 'squad'}", "evidence.kind=oracle",
            f"evidence.index={arguments.index}", "scaffold.placement=suffix",
            f"training.steps={arguments.reader_steps}", "development.limit=50",
        ],
    )  # fmt: skip
    lm = load_backbone(reading.backbone)
    reader, _ = trained(reading, lm, runs / "reader")
    own = [f"study.index={runs / 'index'}", f"teacher.scaffold={runs / 'reader'}", *arguments.values]
    recipe = studied(with_overrides(recipe_named("cartridge"), own), lm, runs / "cartridge", _progress)
    cartridge, cost = trained(recipe, lm, runs / "cartridge")
    rows = [*methods(reading, lm, runs / "index", reader, cartridge)]
    for row in rows:
        file = arguments.out / "results" / f"{row.name}-s{recipe.training.seed}.json"
        if not file.exists():
            content = measured(row, replace(recipe, test=reading.test), lm, [task])
            write_json(file, content | (cost if row.scaffold is cartridge else {}))
            print(f"{row.name}: {content['average']:.1f}", flush=True)
    write_table(arguments.out, rows, recipe.training.seed)


def corpus(data: Path, runs: Path, count: int) -> Task:
    """Index the first passages that development questions are about; return the task of these questions."""
    questions = [*_lines(data / "squad.dev.jsonl.gz")]
    wanted = list(dict.fromkeys(gold for one in questions for gold in one["gold_passage_ids"]))[:count]
    runs.mkdir(parents=True, exist_ok=True)
    passages = [one for one in _lines(data / "passages.jsonl.gz") if one["id"] in set(wanted)]
    about = [one for one in questions if set(one["gold_passage_ids"]) <= set(wanted)]
    for name, rows in (("passages.jsonl", passages), ("human.test.jsonl", about)):
        (runs / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build([str(runs / "passages.jsonl")], runs / "index", Cutting(), as_is=True)
    (task,) = load_tasks(SuiteChoice(source=f"qa:{runs / 'human'}"))
    return task


def _lines(path: Path) -> Sequence[Mapping[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def trained(recipe: Recipe, lm: FrozenLM, folder: Path) -> tuple[Scaffold, dict[str, Any]]:
    """Return the scaffold of a recipe and what its training cost; go on with an interrupted run."""
    watch = Watch(on_step=lambda step: print(f"  {folder.name} {step.number} loss {step.loss:.3f}", flush=True))
    scaffold, progress = train(recipe, lm, folder, resume=True, watch=watch)
    return scaffold, training_summary(folder, lm, progress)


def _progress(done: int, total: int) -> None:
    print(f"  self-study {done}/{total} passages", flush=True)


@dataclass(frozen=True, slots=True)
class Everything:
    """An evidence source: all passages of an index, in their order, as many as fit."""

    index: Index
    packer: Packer
    passes: int = 0

    @property
    def fingerprint(self) -> str:
        """Of the index."""
        return self.index.fingerprint

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return all passages for each question."""
        del fold
        found = [Passage(one.text, 0.0, one.title) for one in self.index.store.passages()]
        return [found for _ in questions]

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the passages that fit."""
        return self.packer.pack(question, passages).question


@dataclass(frozen=True, slots=True)
class Row:
    """A way to answer: a scaffold, and what is read."""

    name: str
    scaffold: Scaffold
    evidence: Evidence | None = None


def methods(reading: Recipe, lm: FrozenLM, index: Path, reader: Scaffold, cartridge: Scaffold) -> Sequence[Row]:
    """Return the rows to measure."""
    found = EvidenceChoice(kind="retrieved", index=str(index))
    room = reading.suite.lengths.target

    def retrieved(scaffold: Scaffold) -> Evidence | None:
        return new_evidence(replace(reading, evidence=found), lm, scaffold.length)

    everything = Everything(Index(index), Packer.for_context(lm, reader.length, room, lm.context))
    return (
        Row("bare", Bare()),
        Row("reader-alone", reader),
        Row("cartridge", cartridge),
        Row("documents-bare", Bare(), everything),
        Row("documents-reader", reader, everything),
        Row("bm25-bare", Bare(), retrieved(Bare())),
        Row("bm25-reader", reader, retrieved(reader)),
        Row("bm25-cartridge", cartridge, retrieved(cartridge)),
    )


def measured(row: Row, recipe: Recipe, lm: FrozenLM, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return scores by example, and what an answer costs."""
    scores = evaluate(tasks, lm, row.scaffold, replace(recipe.test, limit=0), evidence=row.evidence)
    asked = [one.example.question for wording in scores.wordings for one in wording.predictions]
    read = with_evidence(asked, row.evidence) if row.evidence else asked
    lengths = [len(encode(question, lm).ids) + row.scaffold.length for question in read]
    some = read[:TIMED]
    answered(some[:1], lm, row.scaffold, Answering(1, truncate=True))
    seconds = [_first_token(question, row.scaffold, lm) for question in some]
    cost = {
        "tokens": mean(lengths),
        "cache_bytes": context_bytes(lm, round(mean(lengths))),
        "first_token_seconds": median(seconds),
        "timed": len(some),
    }
    content = result(replace(recipe, evidence=EvidenceChoice()), lm, row.scaffold, scores)
    for wording in content["wordings"]:
        wording["samples"] = []  # the texts of data sets are not copied
    return {**content, "answering": cost}


def _first_token(question: Question, scaffold: Scaffold, lm: FrozenLM) -> float:
    begun = time.perf_counter()
    answered([question], lm, scaffold, Answering(1, truncate=True))
    return time.perf_counter() - begun


def write_table(folder: Path, rows: Sequence[Row], seed: int) -> None:
    """Write the table of all rows."""
    lines: list[list[str]] = []
    for row in rows:
        content = read_json(folder / "results" / f"{row.name}-s{seed}.json")
        low, high = content["average_interval"]
        cost = content["answering"]
        f1 = content["wordings"][0]["scores"].get("f1", 0.0)
        cells = [f"{content['average']:.1f} ({low:.1f} to {high:.1f})", f"{f1:.1f}", f"{cost['tokens']:,.0f}"]
        cells += [f"{cost['cache_bytes'] / 1e6:.1f}", f"{1000 * cost['first_token_seconds']:.0f}"]
        lines.append([row.name, *cells])
    header = ["row", "EM (95% interval)", "F1", "tokens read", "keys and values, MB", "first token, ms"]
    table = markdown_rows(header, lines, [True, *[False] * 5])
    (folder / "summary.md").write_text(f"{table}\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
