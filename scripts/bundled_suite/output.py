"""Writes tasks as folders, byte for byte the same whenever the records are."""

import gzip
import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from scripts.bundled_suite.records import Record
from scripts.bundled_suite.tasks import Task
from scripts.bundled_suite.wordings import WORDINGS, Wording

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "shoulders/bundled")
VERSION = 1
HERE = Path(__file__).parent


def write_task(folder: Path, task: Task, splits: Mapping[str, Sequence[Record]]) -> None:
    """Card, templates and records of one task."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        lines = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
        (folder / f"{split}.jsonl.gz").write_bytes(_zipped(lines.encode()))
    wordings = WORDINGS[task.name]
    (folder / "templates.yaml").write_text(_templates(task, wordings), encoding="utf-8")
    card = {
        "name": task.name,
        "cluster": task.cluster,
        "version": VERSION,
        "license": task.license,
        "source": task.source,
        "metrics": list(task.metrics),
        **({"evidence": task.evidence} if task.evidence else {}),
        "splits": {split: len(records) for split, records in splits.items()},
        "templates": len(wordings),
        "note": task.note,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_licenses(folder: Path) -> None:
    """The sources' licences and attributions, beside the tasks."""
    shutil.copyfile(HERE / "LICENSES.md", folder / "LICENSES.md")


def _zipped(data: bytes) -> bytes:
    """Gzip without time or file name."""
    target = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=target, mtime=0) as stream:
        stream.write(data)
    return target.getvalue()


class _Tagged(dict[str, Any]):
    """A mapping with a YAML tag of PromptSource's."""

    tag = ""


class _Template(_Tagged):
    tag = "!Template"


class _Metadata(_Tagged):
    tag = "!TemplateMetadata"


class _Dumper(yaml.SafeDumper):
    """Writes PromptSource's tags, and texts of several lines as blocks where YAML can."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Lists are written out each time."""
        return True


def _mapping(dumper: yaml.SafeDumper, value: _Tagged) -> yaml.Node:
    return dumper.represent_mapping(value.tag, dict(value))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


for _kind in (_Template, _Metadata):
    _Dumper.add_representer(_kind, _mapping)
_Dumper.add_representer(str, _text)


def _templates(task: Task, wordings: Sequence[Wording]) -> str:
    entries = {}
    for wording in wordings:
        name = str(uuid.uuid5(NAMESPACE, f"{task.name}/{wording.name}"))
        metadata = _Metadata(
            choices_in_prompt=wording.listed,
            languages=["en"],
            metrics=list(task.metrics),
            original_task=True,
        )
        entries[name] = _Template(
            answer_choices=wording.choices,
            id=name,
            jinja=wording.jinja,
            metadata=metadata,
            name=wording.name,
            reference="",
        )
    content = {"dataset": f"shoulders/{task.name}", "templates": dict(sorted(entries.items()))}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=120)
