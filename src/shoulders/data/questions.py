"""Files of questions and answers, as open-domain QA keeps them, as a task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import final

from shoulders.data.formats import GOLD, PLACES, beir_query, is_triviaqa, question_record, read_qrels
from shoulders.data.lines import ARRAYS, JsonLines, first_record, json_records
from shoulders.data.tasks import DEV, TEST, TRAIN, Record, Task, TemplatedTask, records_of
from shoulders.data.templates import Template
from shoulders.errors import DataError, SourceNotFound
from shoulders.records import Example, Question

SPLITS = {TRAIN: TRAIN, "dev": DEV, DEV: DEV, TEST: TEST}  # by the word in a file's name
ENDINGS = (".jsonl", ".jsonl.gz", *ARRAYS)
SPLIT = re.compile(rf"(?:^|[._-])({'|'.join(SPLITS)})(?=[._-])")
QUERIES = "queries.jsonl"  # of a folder of BEIR
QA = "qa:"  # begins the name of a suite of such files
QUERY = "{query}"  # stands for the question itself in a wording
QUESTION_WORDING = f"Question: {QUERY}\nAnswer:"
WORDING = Template(
    name="question",
    id="question",
    jinja=f"{QUESTION_WORDING.replace(QUERY, '{{question}}')} ||| {{{{answer}}}}",
    metrics=("Accuracy",),  # exact match first, then token F1 (Lee et al. 2019, section 5; the paper, section 4)
)


def question_name(prefix: str) -> str:
    """What the task of some files of questions is called."""
    return Path(prefix).expanduser().absolute().name


def question_task(prefix: str) -> Task:
    """The task of the files `PREFIX.train.jsonl`, `PREFIX.dev.jsonl` and `PREFIX.test.jsonl`, or those that exist.

    `PREFIX` may also be a file, or a folder of some. Files are JSON Lines or, if their names end in `.json`, hold an
    array; either may be a `.gz`. The split is the word in the name: train, dev (or validation) or test. Records are
    of any format that `shoulders.data.formats` reads: NQ-open's, TriviaQA's, SQuAD's and others'. A folder of BEIR
    (`queries.jsonl`, `qrels/SPLIT.tsv`) is a task without answers.

    Raises:
        SourceNotFound: there is no such file.
        DataError: two files are of one split.
        BadRow: when it is read, a record that is broken, or has no question or answer.
    """
    path = Path(prefix).expanduser().absolute()
    if (path / QUERIES).exists():
        return _judged_task(path)
    files = _exact(path) or _by_split(path)
    if not files:
        raise SourceNotFound(
            f"there are no questions at {prefix!r}: there is no {path.name}.train.jsonl, dev or test, nor is it a file "
            f"or folder of such ({', '.join(ENDINGS)})"
        )
    trivia = any(is_triviaqa(first_record(file, PLACES)) for file in files.values())
    wording = replace(WORDING, metrics=("Trivia QA",)) if trivia else WORDING
    splits = {split: json_records(file, question_record, PLACES) for split, file in files.items()}
    return TemplatedTask(path.name, "Closed-book QA", {wording.name: wording}, splits, query="question")


def _exact(path: Path) -> dict[str, Path]:
    """By split, the files that are called after a prefix and nothing else; of two for one split the first."""
    found: dict[str, Path] = {}
    for word, split in SPLITS.items():
        files = [path.parent / f"{path.name}.{word}{ending}" for ending in ENDINGS]
        if file := next((file for file in files if file.exists()), None):
            found.setdefault(split, file)
    return found


def _by_split(path: Path) -> dict[str, Path]:
    """By split, the file itself, those of a folder, or those whose names begin with a prefix and then say the split."""
    found: dict[str, list[Path]] = {}
    for file, rest in _candidates(path):
        if (word := SPLIT.search(rest)) and file.name.endswith(ENDINGS):
            found.setdefault(SPLITS[word[1]], []).append(file)
    for split, files in found.items():
        if len(files) > 1:
            names = " and ".join(file.name for file in sorted(files))
            raise DataError(f"{names} in {files[0].parent} are both {split} questions: name one of them in full")
    return {split: file for split, (file,) in found.items()}


def _candidates(path: Path) -> list[tuple[Path, str]]:
    """Files that may be questions, each with the part of its name that tells the split."""
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        return [(file, file.name) for file in path.iterdir()]
    named = [(file, file.name.removeprefix(path.name)) for file in path.parent.glob(f"{escape(path.name)}[._-]*")]
    return [(file, rest) for file, rest in named if SPLIT.match(rest)]


@final
@dataclass(frozen=True, slots=True)
class JudgedTask:
    """Questions whose relevant documents are annotated and whose answers nobody tells: retrieval learns from them."""

    name: str
    splits: Mapping[str, Sequence[Record]]
    cluster: str = "Retrieval"
    evidence: str = ""
    wordings: tuple[str, ...] = (WORDING.name,)

    def split_names(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Those that documents are judged for."""
        return tuple(self.splits)

    def rows(self, split: str, wording: str) -> int:  # noqa: ARG002
        """Judged questions of a split."""
        return len(records_of(self.name, self.splits, split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """A question with its documents, without answers and with nothing to teach."""
        record = records_of(self.name, self.splits, split)[row]
        query = record["question"]
        question = Question(QUESTION_WORDING.replace(QUERY, query), gold=tuple(record[GOLD]), query=query)
        return Example(self.name, wording, f"{split}:{row}", question, "", ())

    def metrics(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """None: there are no answers to measure by."""
        return ()

    def original(self, wording: str) -> bool:  # noqa: ARG002
        """True: there is one wording."""
        return True


def _judged_task(folder: Path) -> JudgedTask:
    lines = JsonLines(folder / QUERIES, beir_query)
    queries = {query["id"]: query for query in (lines[number] for number in range(len(lines)))}
    splits: dict[str, Sequence[Record]] = {}
    for file in sorted((folder / "qrels").glob("*.tsv")):
        judged = read_qrels(file)
        if unknown := next((one for one in judged if one not in queries), None):
            raise DataError(f"{file} judges documents for the query {unknown!r}, which {lines.path} does not have")
        splits[SPLITS.get(file.stem, file.stem)] = [{**queries[one], GOLD: gold} for one, gold in judged.items()]
    if not splits:
        raise SourceNotFound(f"{folder} holds no judgements (qrels/SPLIT.tsv) for the queries in {QUERIES}")
    return JudgedTask(folder.name, splits)
