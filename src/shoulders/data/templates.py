"""PromptSource's templates, read as they are: Jinja that renders a record into `input ||| target`.

The format, the helper functions and the pipe protection follow bigscience-workshop/promptsource (templates.py).
Rendering is sandboxed: a template is data and runs no code of its own.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from shoulders.errors import DataError, SourceNotFound, TemplateFailed
from shoulders.store.encodings import decode_whole

SEPARATOR = "|||"
PIPES = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # stands for ||| inside the data, so that it does not separate
NO_TEXT = "\x1a\x1b\x1a"  # stands before what is printed and is no text: a list, an object, null


@dataclass(frozen=True, slots=True)
class Template:
    """One wording of a task.

    Attributes:
        name, id: as in PromptSource.
        jinja: source text of input and target.
        answer_choices: source text of the choices, `|||` between them, or None.
        metrics: names of the metrics it is scored with.
        original_task: True if it asks the data set's own task (others are for training only).
    """

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None
    metrics: tuple[str, ...] = ()
    original_task: bool = True

    def render(self, record: Mapping[str, Any], seed: str) -> "Rendered | None":
        """The record in this wording; None where the template is not meant for it (PromptSource: renders to nothing).

        Args:
            seed: fixes `choice` and `random`, which some templates vary their wording with.

        Raises:
            TemplateFailed: it fails, has no target or more than one, an empty input, target or choice, a target that is
                a list, an object or null, or one outside its choices.
        """
        fields = {name: _protect(value) for name, value in record.items()}
        choices = self._choices(fields, seed)
        fields["answer_choices"] = _protect(choices)
        parts = self._parts(self.jinja, fields, seed)
        if parts == [""]:
            return None
        if len(parts) < 2:
            raise TemplateFailed(f"it has no target: put {SEPARATOR!r} between input and target")
        if len(parts) > 2:
            raise TemplateFailed(f"it has {len(parts)} parts: one {SEPARATOR!r} stands between input and target")
        text, target = parts[0].replace(NO_TEXT, ""), parts[1]
        if not text and not target:
            return None
        if not text or not target:
            raise TemplateFailed(f"it renders an empty {'input' if target else 'target'}")
        _check_text("target", target)
        check_choices(choices, target)
        return Rendered(text, target, tuple(choices) if choices else None)

    def _choices(self, fields: Mapping[str, Any], seed: str) -> list[str] | None:
        found = self._parts(self.answer_choices, fields, seed) if self.answer_choices else None
        for choice in found or ():
            _check_text("answer choice", choice)
        return found

    def _parts(self, source: str, fields: Mapping[str, Any], seed: str) -> list[str]:
        try:
            text = _compiled(source).render(fields, _random=random.Random(seed))
        except Exception as error:  # whatever the template's expressions raise: it is data, not our code
            raise TemplateFailed(f"it fails: {type(error).__name__}: {error}") from error
        return [part.strip().replace(PIPES, SEPARATOR) for part in text.split(SEPARATOR)]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template makes of a record."""

    text: str
    target: str
    choices: tuple[str, ...] | None


def read_templates(path: Path) -> list[Template]:
    """The templates of a PromptSource `templates.yaml`, sorted by name.

    Raises:
        SourceNotFound: there is no such file, or it may not be read.
        TemplateFailed: the file is not such YAML.
    """
    try:
        content = yaml.load(decode_whole(path.read_bytes()), Loader=_Loader)  # noqa: S506 (a SafeLoader)
        found = [_template(entry) for entry in content["templates"].values()]
    except OSError as error:
        raise SourceNotFound(f"cannot read the templates {path}: {error.strerror}") from error
    except (yaml.YAMLError, DataError, KeyError, TypeError, AttributeError) as error:
        raise TemplateFailed(f"{path} is not a PromptSource template file: {error}") from error
    return sorted(found, key=lambda template: (template.name, template.id))


class _Loader(yaml.SafeLoader):
    """Reads PromptSource's two tags as plain mappings; any other tag is refused."""


def _plain(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _plain)


def _template(entry: Mapping[str, Any]) -> Template:
    metadata = entry.get("metadata") or {}
    choices = entry.get("answer_choices")
    metrics = metadata.get("metrics") or ()
    metrics = tuple(map(str.strip, metrics.split(","))) if isinstance(metrics, str) else tuple(metrics)
    if not all(isinstance(metric, str) for metric in metrics):
        raise TypeError(f"metrics of template {entry['name']!r} are {list(metrics)}: names are wanted")
    original = metadata.get("original_task")
    if not isinstance(original, bool | None):
        raise TypeError(f"original_task of template {entry['name']!r} is {original!r}: true or false is wanted")
    for key, value in (("jinja", entry["jinja"]), ("answer_choices", "" if choices is None else choices)):
        if not isinstance(value, str):
            raise TypeError(f"{key} of template {entry['name']!r} is {value!r}, not text: put it in quotes")
    return Template(
        name=str(entry["name"]),
        id=str(entry["id"]),
        jinja=entry["jinja"],
        answer_choices=choices or None,
        metrics=metrics,
        original_task=bool(original),
    )


def check_choices(choices: Sequence[str] | None, target: str) -> None:
    """Raise `TemplateFailed` for an empty choice, or a target that is none of the choices, where there are any."""
    if not choices:
        return
    if "" in choices:
        raise TemplateFailed(f"one of its answer choices {choices} is empty: {SEPARATOR!r} stands between two choices")
    if target not in choices:
        raise TemplateFailed(f"its target {target!r} is not among its answer choices {choices}")


def _check_text(what: str, printed: str) -> None:
    if NO_TEXT in printed:
        shown = printed.replace(NO_TEXT, "")
        raise TemplateFailed(f"its {what} {shown!r} is no text but a list, an object or null: choose one, as in x[0]")


def _protect(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(SEPARATOR, PIPES)
    if isinstance(value, Mapping):
        return {key: _protect(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_protect(inner) for inner in value]
    return value


def _highlight(text: str) -> str:
    return f"<span style='color: #F08080'>{text}</span>"


def _most_frequent(items: Iterable[Any]) -> list[Any]:
    """The items that occur most often."""
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]] if counts else []


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[Any]) -> Any:
    """One of the options, the same whenever the same record is rendered (PromptSource and Jinja draw anew)."""
    return context["_random"].choice(options)


def _marked(value: Any) -> Any:
    """What is printed, marked if it is no text."""
    return f"{NO_TEXT}{value}" if value is None or isinstance(value, list | tuple | Mapping) else value


class _Absent(jinja2.StrictUndefined):
    """A field that a record does not have: `{% if field %}` is false, and all else fails, as in PromptSource."""

    def __bool__(self) -> bool:
        return False


@jinja2.pass_environment
def _element(environment: jinja2.Environment, whole: Any, which: Any) -> Any:
    """`whole[which]`, not counted from the end: a label of -1 hides the answer, and is not that of the last choice."""
    if isinstance(whole, list | tuple | str) and isinstance(which, int) and which < 0:
        raise IndexError(f"it takes element {which} of a list: a label below 0 says that the answer is hidden")
    return environment.getitem(whole, which)


class _Elements(NodeTransformer):
    """Has `_element` take what an expression asks for; a number that the template itself writes counts from the end."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        literal = node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg
        if isinstance(literal, nodes.Slice | nodes.Const):
            return node
        return nodes.Filter(node.node, "_element", [node.arg], [], None, None, lineno=node.lineno)


class _Environment(SandboxedEnvironment):
    """Jinja's, with `_Elements`."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Elements().visit(super()._parse(source, name, filename))


@lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    environment = _Environment(undefined=_Absent, finalize=_marked)
    helpers = {"highlight": _highlight, "most_frequent": _most_frequent, "choice": _choice}
    environment.filters.update(helpers, random=_choice, _element=_element)
    environment.globals.update(zip=zip, **helpers)
    del environment.globals["lipsum"]  # another text every time
    return environment
