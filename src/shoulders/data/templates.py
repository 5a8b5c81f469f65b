"""PromptSource's templates: Jinja that renders a record into `input ||| target`.

Format, helper functions and the protection of pipes follow bigscience-workshop/promptsource (templates.py).
Rendering is sandboxed: a template is data and cannot run code.
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
from shoulders.store.encodings import decode_strict

SEPARATOR = "|||"
PIPES = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # replaces ||| in the data, where it is no separator
NO_TEXT = "\x1a\x1b\x1a"  # marks printed values that are not text: a list, an object, null


@dataclass(frozen=True, slots=True)
class Template:
    """One wording of a task.

    Attributes:
        name, id: as in PromptSource.
        jinja: source of input and target.
        answer_choices: source of the choices, separated by `|||`; None if there are none.
        metrics: names of the metrics for its answers.
        original_task: whether it asks the data set's own task (others are for training only).
    """

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None
    metrics: tuple[str, ...] = ()
    original_task: bool = True

    def render(self, record: Mapping[str, Any], seed: str) -> "Rendered | None":
        """Return the record in this wording; None if the template does not apply to it (it renders to nothing).

        Args:
            record: fields of the record.
            seed: seed of `choice` and `random`, with which some templates vary their wording.

        Raises:
            TemplateFailed: it fails, has no target or several, or an empty input, target or choice; the target is a
                list, an object or null, or not among the choices.
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
            raise TemplateFailed(f"it has {len(parts)} parts: put one {SEPARATOR!r} between input and target")
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
        except Exception as error:  # expressions of a template can raise anything
            raise TemplateFailed(f"it fails: {type(error).__name__}: {error}") from error
        return [part.strip().replace(PIPES, SEPARATOR) for part in text.split(SEPARATOR)]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record rendered by a template."""

    text: str
    target: str
    choices: tuple[str, ...] | None


def read_templates(path: Path) -> list[Template]:
    """Read the templates of a PromptSource `templates.yaml`, sorted by name.

    Raises:
        SourceNotFound: the file does not exist or may not be read.
        TemplateFailed: the file is not YAML of this form.
    """
    try:
        content = yaml.load(decode_strict(path.read_bytes()), Loader=_Loader)  # noqa: S506 (a SafeLoader)
        found = [_template(entry) for entry in content["templates"].values()]
    except OSError as error:
        raise SourceNotFound(f"cannot read the templates {path}: {error.strerror}") from error
    except (yaml.YAMLError, DataError, KeyError, TypeError, AttributeError) as error:
        raise TemplateFailed(f"{path} is not a PromptSource template file: {error}") from error
    return sorted(found, key=lambda template: (template.name, template.id))


class _Loader(yaml.SafeLoader):
    """YAML loader that reads PromptSource's two tags as plain mappings, and refuses any other tag."""


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
        raise TypeError(f"metrics of template {entry['name']!r} are {list(metrics)}: they must be names")
    original = metadata.get("original_task")
    if not isinstance(original, bool | None):
        raise TypeError(f"original_task of template {entry['name']!r} is {original!r}: it must be true or false")
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
    """Raise `TemplateFailed` for an empty choice, or a target that is not among the choices, if there are any."""
    if not choices:
        return
    if "" in choices:
        raise TemplateFailed(f"one of its answer choices {choices} is empty: write {SEPARATOR!r} only between choices")
    if target not in choices:
        raise TemplateFailed(f"its target {target!r} is not among its answer choices {choices}")


def _check_text(what: str, printed: str) -> None:
    if NO_TEXT in printed:
        shown = printed.replace(NO_TEXT, "")
        raise TemplateFailed(
            f"its {what} {shown!r} is not text but a list, an object or null: choose one element, as in x[0]"
        )


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
    """Return the items that occur most often."""
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]] if counts else []


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[Any]) -> Any:
    """Return a random option, the same each time that a record is rendered (other than PromptSource and Jinja)."""
    return context["_random"].choice(options)


def _marked(value: Any) -> Any:
    """Return a printed value, marked if it is not text."""
    return f"{NO_TEXT}{value}" if value is None or isinstance(value, list | tuple | Mapping) else value


class _Absent(jinja2.StrictUndefined):
    """A missing field of a record: `{% if field %}` is false, any other use fails, as in PromptSource."""

    def __bool__(self) -> bool:
        return False


@jinja2.pass_environment
def _element(environment: jinja2.Environment, whole: Any, which: Any) -> Any:
    """Return `whole[which]`; fail for a negative number: a label of -1 means hidden, not the last choice."""
    if isinstance(whole, list | tuple | str) and isinstance(which, int) and which < 0:
        raise IndexError(f"it takes element {which} of a list: a negative label means that the answer is hidden")
    return environment.getitem(whole, which)


class _Elements(NodeTransformer):
    """Replaces subscripts in templates by `_element`, except literal numbers, which may count from the end."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        literal = node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg
        if isinstance(literal, nodes.Slice | nodes.Const):
            return node
        return nodes.Filter(node.node, "_element", [node.arg], [], None, None, lineno=node.lineno)


class _Environment(SandboxedEnvironment):
    """Jinja's sandboxed environment, with `_Elements`."""

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
    del environment.globals["lipsum"]  # its text differs each time
    return environment
