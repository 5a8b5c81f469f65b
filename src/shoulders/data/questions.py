"""Files of questions and answers, as open-domain QA keeps them, as a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoulders.data.lines import JsonLines
from shoulders.data.tasks import DEV, TEST, TRAIN, Records, TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import SourceNotFound

SPLITS = {TRAIN: (TRAIN,), DEV: ("dev", DEV), TEST: (TEST,)}  # what files of a split are called
ENDINGS = (".jsonl", ".jsonl.gz")
QA = "qa:"  # begins the name of a suite of such files
QUERY = "{query}"  # stands for the question itself in a wording
QUESTION_WORDING = f"Question: {QUERY}\nAnswer:"
WORDING = Template(
    name="question",
    id="question",
    jinja=f"{QUESTION_WORDING.replace(QUERY, '{{question}}')} ||| {{{{answer}}}}",
    metrics=("Trivia QA",),  # exact match first, then token F1 (Lee et al. 2019, section 5; the paper, section 4)
)


def question_task(prefix: str) -> TemplatedTask:
    """The task of `PREFIX.train.jsonl`, `PREFIX.dev.jsonl` and `PREFIX.test.jsonl`, or those of them that exist.

    A line holds `question` and `answers` (a list; all count as right), `answer` if another than the first is to be
    taught, and `gold_passage_ids` if the documents of an index that hold the answer are known. `.gz` and `validation`
    for `dev` will do too.

    Raises:
        SourceNotFound: there is no such file.
        BadRow: when it is read, a line that is broken, or has no question or answer.
    """
    path = Path(prefix).expanduser()
    splits: dict[str, Records] = {}
    for split, names in SPLITS.items():
        files = [path.with_name(f"{path.name}.{name}{ending}") for name in names for ending in ENDINGS]
        if file := next((file for file in files if file.exists()), None):
            splits[split] = JsonLines(file, _record)
    if not splits:
        raise SourceNotFound(f"there are no questions at {prefix!r}: there is no {path.name}.train.jsonl, dev or test")
    return TemplatedTask(path.name, "Closed-book QA", {WORDING.name: WORDING}, splits, query="question")


def _record(row: Mapping[str, Any]) -> Mapping[str, Any]:
    answers = row.get("answers") or ([row["answer"]] if row.get("answer") else [])
    if not str(row.get("question") or "").strip() or not isinstance(answers, list) or not answers:
        raise ValueError("it needs a `question` and a list of `answers`")
    return {**row, "answers": answers, "answer": row.get("answer") or answers[0]}
