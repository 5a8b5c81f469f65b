"""Where tasks come from: the bundled suite, folders, files of questions, bigscience/P3, Hugging Face data sets."""

import importlib
import importlib.resources
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import Any, final

from shoulders.data.formats import GOLD, PLACES, beir_query, is_triviaqa, question_record, read_qrels
from shoulders.data.lines import ARRAYS, JsonLines, first_record, json_records
from shoulders.data.tasks import DEV, TEST, TRAIN, Record, Records, RenderedTask, Task, TemplatedTask, records_of
from shoulders.data.templates import Template, read_templates
from shoulders.errors import DataError, SourceNotFound, UnknownName
from shoulders.records import Example, Question
from shoulders.store.files import hub_errors, read_json

OTHER = "Other"

# Clusters by the beginning of a data set's name: the paper, table 7; those that T0 holds out: Sanh et al. 2021.
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

# PromptSource's names; a wording with answer choices is scored by accuracy whatever stands here.
METRICS: dict[str, tuple[str, ...]] = {
    "Extractive QA": ("Squad",),
    "Multiple-choice QA": ("Squad",),
    "Closed-book QA": ("Squad",),
    "Summarization": ("ROUGE",),
    "Structure-to-text": ("ROUGE", "BLEU"),
}


def cluster_of(name: str) -> str:
    """The cluster of a data set."""
    return next((cluster for cluster, sets in CLUSTERS.items() if name.startswith(sets)), OTHER)


def metrics_of(name: str) -> tuple[str, ...]:
    """Names of the metrics that its generated answers are scored by; () where nothing is usual."""
    return METRICS.get(cluster_of(name), ())


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


P3, P3_COLUMNS = "bigscience/P3", ("inputs_pretokenized", "targets_pretokenized")
BUNDLED = "bundled"


def open_suite(source: str, names: Sequence[str] = ()) -> list[Task]:
    """The tasks of a suite, or those of the given names, in that order. Records are read when they are asked for.

    Raises:
        SourceNotFound, UnknownName, DataError, TemplateFailed, HubUnreachable: what is missing or broken, by name.
    """
    tasks = [*_opened(source, names)]
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:  # scores and counts go by the name
            raise DataError(
                f"{count} tasks of {source!r} are called {name!r}: name each once, or rename it in card.json"
            )
    return tasks


def _opened(source: str, names: Sequence[str]) -> Sequence[Task]:
    if source.startswith("p3:"):
        return [p3_task(name) for name in _chosen(names, source.removeprefix("p3:").split(","), source)]
    if source.startswith(QA):
        prefixes = source.removeprefix(QA).split(",")
        found = {question_name(prefix): prefix for prefix in prefixes}
        return [question_task(found[name]) for name in _chosen(names, [*map(question_name, prefixes)], source)]
    if source.startswith("hub:"):
        spec = source.removeprefix("hub:")
        _chosen(names, [hub_name(spec)], source)
        return [hub_task(spec)]
    folder = bundled_folder() if source == BUNDLED else Path(source).expanduser()
    if not folder.is_dir():
        meant = f" (did you mean {BUNDLED!r}?)" if get_close_matches(source, [BUNDLED]) else ""
        raise SourceNotFound(
            f"there is no suite folder {source!r}{meant}: name a folder, {BUNDLED!r}, 'qa:...', 'p3:...' or 'hub:...'"
        )
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/templates.yaml"))}
    if (folder / "templates.yaml").exists():
        found = {folder.resolve().name: folder}
    if not found:
        raise SourceNotFound(f"{folder} holds no task folder: each needs a templates.yaml and SPLIT.jsonl[.gz] files")
    return [folder_task(found[name]) for name in _chosen(names, list(found), source)]


def _chosen(names: Sequence[str], known: Sequence[str], source: str) -> Sequence[str]:
    """The names, or all that are known if there are none."""
    for name in names:
        if name not in known:
            raise UnknownName(f"task in {source!r} called", name, known)
    return names or known


def bundled_folder() -> Path:
    """The suite that ships with the package."""
    return Path(str(importlib.resources.files("shoulders.data") / "bundled"))


def folder_task(folder: Path) -> TemplatedTask:
    """A task kept as a folder: `templates.yaml`, `train`, `validation` and `test` `.jsonl` or `.json`, and `card.json`.

    The card's `name`, `cluster` and `evidence` (a field of the records) are used, everything else in it is kept.
    Records stay in their files, and are read one by one.

    Raises:
        UnknownName: no first record of a split has the field that the card names as evidence.
        CorruptFile, DataError, TemplateFailed: a file is broken; a single line of one (BadRow) only when it is read.
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
    """A data set of P3 with all its wordings, fetched from the hub.

    Each wording is a configuration of the repository. Those that end in `score_eval` repeat the examples once for each
    answer choice; rank classification here needs the choices only, which the others hold too. Tables stay on disk,
    where the datasets library maps them into memory.

    Raises:
        SourceNotFound, HubUnreachable: the hub has no such data set, or does not answer.
        DataError: a table has not the columns of P3.
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
    """The columns that are read: a row's token ids, of a tokenizer that is not ours, would be decoded for nothing."""
    if lacking := [name for name in P3_COLUMNS if name not in table.column_names]:
        raise DataError(f"{place} has no column {lacking[0]!r}: it is not as bigscience/P3 is")
    return table.select_columns([name for name in (*P3_COLUMNS, "answer_choices") if name in table.column_names])


def hub_task(spec: str) -> TemplatedTask:
    """A Hugging Face data set `PATH[:CONFIG]@templates.yaml`; PATH may be a local folder of data files."""
    place, _, templates = spec.partition("@")
    if not templates:
        raise SourceNotFound(f"'hub:{spec}' names no templates: add @PATH of a PromptSource templates.yaml")
    path, _, config = place.partition(":")
    found = _by_name(read_templates(Path(templates).expanduser()))
    return TemplatedTask(hub_name(spec), OTHER, found, _hub_splits(path, config or None))


def hub_name(spec: str) -> str:
    """What the task of a Hugging Face data set is called."""
    return spec.partition("@")[0].replace("/", "_").replace(":", "_")


def _hub_splits(path: str, config: str | None) -> Mapping[str, Any]:
    """Tables of the datasets library by split; it maps them into memory from its cache on disk."""
    datasets = datasets_library()
    with hub_errors(path):
        return {str(split): table for split, table in datasets.load_dataset(path, config).items()}


def datasets_library() -> Any:
    """The library, an optional dependency: only hub data needs it."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise SourceNotFound("data of the hub needs the datasets library: pip install 'shoulders[hub]'") from None


def _by_name(templates: Sequence[Template]) -> dict[str, Template]:
    """Templates by name; two of one name (PromptSource has some) keep apart by their id."""
    found: dict[str, Template] = {}
    for template in templates:
        found[template.name if template.name not in found else f"{template.name} {template.id[:8]}"] = template
    return found


def _file_of(folder: Path, split: str) -> Path | None:
    return next((file for ending in ENDINGS if (file := folder / f"{split}{ending}").exists()), None)
