"""Readers of tasks: the bundled suite, folders, files of questions, bigscience/P3, Hugging Face data sets."""

import importlib
import importlib.resources
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, final

from shoulders.data.depth import DEPTH, depth_task
from shoulders.data.formats import GOLD, PLACES, beir_query, is_triviaqa, question_record, read_qrels
from shoulders.data.lines import ARRAYS, JsonLines, first_record, json_records
from shoulders.data.tasks import DEV, TEST, TRAIN, Record, Records, RenderedTask, Task, TemplatedTask, records_of
from shoulders.data.templates import Template, read_templates
from shoulders.errors import DataError, SourceNotFound, UnknownName, nearest
from shoulders.records import Example, Question
from shoulders.store.files import hub_errors, read_json

OTHER = "Other"

# Clusters by prefixes of data sets' names. Source: the paper, table 7; clusters that T0 holds out: Sanh et al. 2021.
CLUSTERS: dict[str, tuple[str, ...]] = {
    "Extractive QA": ("adversarial_qa", "duorc", "quoref", "ropes", "squad", "super_glue_record"),
    "Multiple-choice QA": (
        "cos_e", "cosmos_qa", "dream", "openbookqa", "piqa", "qasc", "quail", "quarel", "quartz", "race_", "sciq",
        "social_i_qa", "super_glue_boolq", "super_glue_multirc", "wiki_hop", "wiqa",
    ),
    "Closed-book QA": ("ai2_arc", "kilt_tasks_hotpotqa", "trivia_qa", "web_questions", "wiki_qa"),
    "Summarization": ("cnn_dailymail", "gigaword", "multi_news", "samsum", "xsum"),
    "Sentiment": ("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp"),
    "Paraphrase identification": ("glue_mrpc", "glue_qqp", "paws"),
    "Topic classification": ("ag_news", "dbpedia_14", "trec"),
    "Coreference resolution": ("super_glue_wsc", "winogrande"),
    "Sentence completion": ("hellaswag", "story_cloze", "super_glue_copa"),
    "Structure-to-text": ("common_gen", "wiki_bio"),
    "Word sense disambiguation": ("super_glue_wic",),
    "Natural language inference": ("anli", "super_glue_cb", "super_glue_rte"),
}  # fmt: skip

# PromptSource's names; wordings with answer choices are always scored by accuracy.
METRICS: dict[str, tuple[str, ...]] = {
    "Extractive QA": ("Squad",),
    "Multiple-choice QA": ("Squad",),
    "Closed-book QA": ("Squad",),
    "Summarization": ("ROUGE",),
    "Structure-to-text": ("ROUGE", "BLEU"),
}


def cluster_of(name: str) -> str:
    """Return the cluster of a data set."""
    return next((cluster for cluster, sets in CLUSTERS.items() if name.startswith(sets)), OTHER)


def metrics_of(name: str) -> tuple[str, ...]:
    """Return the usual metrics of a data set's generated answers; () if there are none."""
    return METRICS.get(cluster_of(name), ())


SPLITS = {TRAIN: TRAIN, "dev": DEV, DEV: DEV, TEST: TEST}  # by the word in a file name
ENDINGS = (".jsonl", ".jsonl.gz", *ARRAYS)
SPLIT = re.compile(rf"(?:^|[._-])({'|'.join(SPLITS)})(?=[._-])")
QUERIES = "queries.jsonl"  # file in a folder of BEIR
QA = "qa:"  # prefix of a suite's name, for files of questions
QUERY = "{query}"  # placeholder for the question in a wording
QUESTION_WORDING = f"Question: {QUERY}\nAnswer:"
WORDING = Template(
    name="question",
    id="question",
    jinja=f"{QUESTION_WORDING.replace(QUERY, '{{question}}')} ||| {{{{answer}}}}",
    metrics=("Accuracy",),  # exact match first, then token F1 (Lee et al. 2019, section 5; the paper, section 4)
)


def question_name(prefix: str) -> str:
    """Return the name of the task of some files of questions."""
    return Path(prefix).expanduser().absolute().name


def question_task(prefix: str) -> Task:
    """Return the task of those of `PREFIX.train.jsonl`, `PREFIX.dev.jsonl` and `PREFIX.test.jsonl` that exist.

    `PREFIX` may also be a file, or a folder of files. Files are JSON Lines or, if their names end in `.json`, contain
    an array; either may be compressed (`.gz`). The split is the word in the name: train, dev (or validation) or test.
    Records have any format that `shoulders.data.formats` reads: NQ-open, TriviaQA, SQuAD and others. A folder of BEIR
    (`queries.jsonl`, `qrels/SPLIT.tsv`) is a task without answers.

    Raises:
        SourceNotFound: there is no such file.
        DataError: two files are of the same split.
        BadRow: when a record is read, it is broken, or has no question or answer.
    """
    path = Path(prefix).expanduser().absolute()
    if (path / QUERIES).exists():
        return _judged_task(path)
    files = _exact(path) or _by_split(path)
    if not files:
        raise SourceNotFound(
            f"there are no questions at {prefix!r}: there is no {path.name}.train.jsonl, dev or test, nor is it a file "
            f"or folder of such ({', '.join(ENDINGS)}): name yours, suite.source=qa:PATH/NAME"
        )
    trivia = any(is_triviaqa(first_record(file, PLACES)) for file in files.values())
    wording = replace(WORDING, metrics=("Trivia QA",)) if trivia else WORDING
    splits = {split: json_records(file, question_record, PLACES) for split, file in files.items()}
    return TemplatedTask(path.name, "Closed-book QA", {wording.name: wording}, splits, query="question")


def _exact(path: Path) -> dict[str, Path]:
    """Return by split the files named exactly PREFIX.SPLIT.ENDING; of several for a split, the first."""
    found: dict[str, Path] = {}
    for word, split in SPLITS.items():
        files = [path.parent / f"{path.name}.{word}{ending}" for ending in ENDINGS]
        if file := next((file for file in files if file.exists()), None):
            found.setdefault(split, file)
    return found


def _by_split(path: Path) -> dict[str, Path]:
    """Return by split a single file, the files of a folder, or files whose names begin with a prefix and a split."""
    found: dict[str, list[Path]] = {}
    for file, rest in _candidates(path):
        if (word := SPLIT.search(rest)) and file.name.endswith(ENDINGS):
            found.setdefault(SPLITS[word[1]], []).append(file)
    for split, files in found.items():
        if len(files) > 1:
            names = " and ".join(file.name for file in sorted(files))
            raise DataError(
                f"{names} in {files[0].parent} are both questions of split {split!r}: give the full name of one"
            )
    return {split: file for split, (file,) in found.items()}


def _candidates(path: Path) -> list[tuple[Path, str]]:
    """Return files that may be questions, each with the part of its name that may contain the split."""
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        return [(file, file.name) for file in path.iterdir()]
    named = [(file, file.name.removeprefix(path.name)) for file in path.parent.glob(f"{escape(path.name)}[._-]*")]
    return [(file, rest) for file, rest in named if SPLIT.match(rest)]


@final
@dataclass(frozen=True, slots=True)
class JudgedTask:
    """Questions with annotated relevant documents and without answers, for training and measuring retrieval."""

    name: str
    splits: Mapping[str, Sequence[Record]]
    cluster: str = "Retrieval"
    evidence: str = ""
    wordings: tuple[str, ...] = (WORDING.name,)

    def split_names(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the names of the splits with judgements."""
        return tuple(self.splits)

    def rows(self, split: str, wording: str) -> int:  # noqa: ARG002
        """Return the number of questions of a split that have judgements."""
        return len(records_of(self.name, self.splits, split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """Return a question with the ids of its documents, without target and references."""
        record = records_of(self.name, self.splits, split)[row]
        query = record["question"]
        question = Question(QUESTION_WORDING.replace(QUERY, query), gold=tuple(record[GOLD]), query=query)
        return Example(self.name, wording, f"{split}:{row}", question, "", ())

    def metrics(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return no metrics: there are no answers."""
        return ()

    def original(self, wording: str) -> bool:  # noqa: ARG002
        """Return True: there is one wording."""
        return True


def _judged_task(folder: Path) -> JudgedTask:
    lines = JsonLines(folder / QUERIES, beir_query)
    queries = {query["id"]: query for query in (lines[number] for number in range(len(lines)))}
    splits: dict[str, Sequence[Record]] = {}
    for file in sorted((folder / "qrels").glob("*.tsv")):
        judged = read_qrels(file)
        if unknown := next((one for one in judged if one not in queries), None):
            raise DataError(f"{file} has judgements for the query {unknown!r}, which is not in {lines.path}")
        splits[SPLITS.get(file.stem, file.stem)] = [{**queries[one], GOLD: gold} for one, gold in judged.items()]
    if not splits:
        raise SourceNotFound(f"{folder} contains no judgements (qrels/SPLIT.tsv) for the queries in {QUERIES}")
    return JudgedTask(folder.name, splits)


P3, P3_COLUMNS = "bigscience/P3", ("inputs_pretokenized", "targets_pretokenized")
BUNDLED = "bundled"


def open_suite(source: str, names: Sequence[str] = ()) -> list[Task]:
    """Return the tasks of a suite, or those of the given names in that order. Records are read when they are accessed.

    Raises:
        SourceNotFound, UnknownName, DataError, TemplateFailed, HubUnreachable: the suite, or a task, is missing or
            broken.
    """
    tasks = [*_opened(source, names)]
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:  # scores and counts are stored by name
            raise DataError(
                f"{count} tasks of {source!r} are called {name!r}: name each once, or rename it in card.json"
            )
    return tasks


def _opened(source: str, names: Sequence[str]) -> Sequence[Task]:
    if source.startswith("p3:"):
        return [p3_task(name) for name in _selected(names, source.removeprefix("p3:").split(","), source)]
    if source.startswith(QA):
        prefixes = source.removeprefix(QA).split(",")
        found = {question_name(prefix): prefix for prefix in prefixes}
        return [question_task(found[name]) for name in _selected(names, [*map(question_name, prefixes)], source)]
    if source.startswith(DEPTH):
        listed = source.removeprefix(DEPTH).split(",")
        return [depth_task(name, WORDING, _bundled_records) for name in _selected(names, listed, source)]
    if source.startswith("hub:"):
        spec = source.removeprefix("hub:")
        _selected(names, [hub_name(spec)], source)
        return [hub_task(spec)]
    folder = bundled_folder() if source == BUNDLED else Path(source).expanduser()
    if not folder.is_dir():
        hint = f" (did you mean {BUNDLED!r}?)" if nearest(source, [BUNDLED], cutoff=0.6) else ""
        raise SourceNotFound(
            f"there is no suite folder {source!r}{hint}: name a folder, {BUNDLED!r}, 'qa:...', 'depth:...', "
            "'p3:...' or 'hub:...'"
        )
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/templates.yaml"))}
    if (folder / "templates.yaml").exists():
        found = {folder.resolve().name: folder}
    if not found:
        raise SourceNotFound(
            f"{folder} contains no task folder: each needs a templates.yaml and SPLIT.jsonl[.gz] files"
        )
    return [folder_task(found[name]) for name in _selected(names, list(found), source)]


def _bundled_records(task: str, split: str) -> Records:
    return folder_task(bundled_folder() / task).splits[split]


def _selected(names: Sequence[str], known: Sequence[str], source: str) -> Sequence[str]:
    """Return the names, or all known ones if no names are given; raise `UnknownName` for others."""
    for name in names:
        if name not in known:
            raise UnknownName(f"task in {source!r} called", name, known)
    return names or known


def bundled_folder() -> Path:
    """Return the folder of the suite that ships with the package."""
    return Path(str(importlib.resources.files("shoulders.data") / "bundled"))


def folder_task(folder: Path) -> TemplatedTask:
    """Return the task of a folder: `templates.yaml`, `card.json`, and `.jsonl` or `.json` files of its splits.

    The splits are train, validation and test. `name`, `cluster` and `evidence` (a field of the records) of the card are
    used, its other fields are kept. Records are read from their files one by one.

    Raises:
        UnknownName: no split's first record has the field that the card names as evidence.
        CorruptFile, DataError, TemplateFailed: a file is broken. A broken record (BadRow) is found when it is read.
    """
    card = read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    files = {split: file for split in (TRAIN, DEV, TEST) if (file := _file_of(folder, split))}
    templates = _by_name(read_templates(folder / "templates.yaml"))
    name, evidence = str(card.get("name", folder.name)), str(card.get("evidence", ""))
    fields = {field for file in files.values() for field in first_record(file)} if evidence else set[str]()
    if evidence and fields and evidence not in fields:
        raise UnknownName(f"field of task {name!r} (evidence in its card.json) called", evidence, fields)
    splits = {split: json_records(file, dict) for split, file in files.items()}
    return TemplatedTask(name, str(card.get("cluster", OTHER)), templates, splits, card, evidence)


def p3_task(name: str, repository: str = P3) -> RenderedTask:
    """Return a data set of P3 with all its wordings, from the hub.

    Each wording is a configuration of the repository. Configurations that end in `score_eval` repeat the examples for
    each answer choice; they are left out, since rank classification needs only the choices, which the others have too.
    Tables stay on disk, where the datasets library maps them into memory.

    Raises:
        SourceNotFound, HubUnreachable: the hub has no such data set, or does not answer.
        DataError: a table lacks a column of P3.
    """
    datasets = datasets_library()
    with hub_errors(repository):
        found = [config for config in datasets.get_dataset_config_names(repository) if config.startswith(f"{name}_")]
    wordings = [config for config in found if not config.endswith("score_eval")]
    if not wordings:
        raise SourceNotFound(f"{repository} has no data set {name!r}: its configurations begin with a data set's name")
    tables = {
        wording.removeprefix(f"{name}_"): {
            split: _p3_columns(table, f"{repository}, {wording}, {split}")
            for split, table in _hub_splits(repository, wording).items()
        }
        for wording in wordings
    }
    return RenderedTask(name, cluster_of(name), tables, metrics_of(name))


def _p3_columns(table: Any, place: str) -> Records:
    """Return the table with only the columns that are needed: reading the others (token ids) takes time."""
    if lacking := [name for name in P3_COLUMNS if name not in table.column_names]:
        raise DataError(f"{place} has no column {lacking[0]!r}: it is not in the format of bigscience/P3")
    return table.select_columns([name for name in (*P3_COLUMNS, "answer_choices") if name in table.column_names])


def hub_task(spec: str) -> TemplatedTask:
    """Return a Hugging Face data set `PATH[:CONFIG]@templates.yaml` as a task; PATH may be a local folder of files."""
    place, _, templates = spec.partition("@")
    if not templates:
        raise SourceNotFound(f"'hub:{spec}' names no templates: add @PATH, the path of a PromptSource templates.yaml")
    path, _, config = place.partition(":")
    found = _by_name(read_templates(Path(templates).expanduser()))
    return TemplatedTask(hub_name(spec), OTHER, found, _hub_splits(path, config or None))


def hub_name(spec: str) -> str:
    """Return the name of the task of a Hugging Face data set."""
    return spec.partition("@")[0].replace("/", "_").replace(":", "_")


def _hub_splits(path: str, config: str | None) -> Mapping[str, Any]:
    """Return tables of the datasets library by split, mapped into memory from its cache on disk."""
    datasets = datasets_library()
    with hub_errors(path):
        return {str(split): table for split, table in datasets.load_dataset(path, config).items()}


def datasets_library() -> Any:
    """Import the datasets library, an optional dependency that only data from the hub needs."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise SourceNotFound("data from the hub needs the datasets library: pip install 'shoulders[hub]'") from None


def _by_name(templates: Sequence[Template]) -> dict[str, Template]:
    """Return templates by name; a name that is used already (PromptSource has some) gets the id added."""
    found: dict[str, Template] = {}
    for template in templates:
        found[template.name if template.name not in found else f"{template.name} {template.id[:8]}"] = template
    return found


def _file_of(folder: Path, split: str) -> Path | None:
    return next((file for ending in ENDINGS if (file := folder / f"{split}{ending}").exists()), None)
