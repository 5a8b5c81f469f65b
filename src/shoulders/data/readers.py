"""Where tasks come from: the bundled suite, folders, bigscience/P3, and any Hugging Face data set with templates.

A suite is named by one text:

    bundled                              facts about the world, shipped with the package
    PATH                                 a task folder (card.json, templates.yaml, SPLIT.jsonl[.gz]) or a folder of them
                                         (a SPLIT.json[.gz] is an array of records)
    qa:PATH/NAME,...                     questions and answers: NAME.train.jsonl[.gz], NAME.dev.jsonl, NAME.test.jsonl,
                                         or a file or folder that a data set is published as (shoulders.data.formats)
    p3:super_glue_rte,ag_news            data sets of bigscience/P3, all wordings of each
    hub:PATH[:CONFIG]@templates.yaml     a Hugging Face data set, rendered by a PromptSource file
"""

import importlib
import importlib.resources
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from shoulders.backbone.sources import hub_errors
from shoulders.data.lines import first_record, json_records
from shoulders.data.p3 import OTHER, cluster_of, metrics_of
from shoulders.data.questions import ENDINGS, QA, question_name, question_task
from shoulders.data.tasks import DEV, TEST, TRAIN, Records, RenderedTask, Task, TemplatedTask
from shoulders.data.templates import Template, read_templates
from shoulders.errors import DataError, SourceNotFound, UnknownName
from shoulders.files import read_json

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
