"""What a result was measured with, in the words of the paper's tables 4 and 6."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoulders.errors import CorruptFile, UsageError
from shoulders.evaluation.results import Result
from shoulders.scaffolds.base import KINDS
from shoulders.scaffolds.recursion import RecursionShape

BARE, PROMPT_TUNED, TEXTUAL = "bare", "Prompt-tuned", "Textual-recursive"
# The paper's words for a kind of scaffold, where they are not its label.
ONE_PASS = {BARE: BARE, "soft_prompt": PROMPT_TUNED}
UNDER = {BARE: "", "soft_prompt": " under a soft prompt"}
DASH = "\N{EN DASH}"  # as the paper writes LM-Connector-LM
ADAPTIVE = {"average", "budget", "rule", "curve"}  # what a result says of adaptive passes


@dataclass(frozen=True, slots=True)
class Method:
    """A row's name and what the columns beside it say.

    Attributes:
        name: as the paper's tables have it.
        passes: through the frozen model for a question, on average.
        layers: blocks of a Connector; None without one.
        pretrained: training started from a trained scaffold; None where nothing is trained, or by several runs.
        variant: what is not in the paper's tables: how the Connector starts, when a second pass is made.
        candidates: answers sampled for a question in textual recursion, or 0.
    """

    name: str
    passes: float
    layers: int | None = None
    pretrained: bool | None = None
    variant: str = ""
    candidates: int = 0


def method_of(result: Result) -> Method:
    """The method of a result, by its recipe.

    Raises:
        UsageError: the recipe that it was measured by is that of another kind of scaffold.
        CorruptFile: what it says of adaptive passes is broken.
    """
    if adaptive := _adaptive(result):  # of several scaffolds: the recipe says how they were measured, not what they are
        name = f"Adaptive (budget {adaptive['budget']:g})"
        return Method(name, adaptive["average"], variant=f"decided by {adaptive['rule']}")
    recipe = result.content["recipe"]
    choice = recipe["scaffold"]
    kind = kind_of(result.content)
    if kind not in (choice["kind"], BARE):
        raise UsageError(
            f"{result.name} is a scaffold of kind {kind} and was measured by a recipe with scaffold.kind="
            f"{choice['kind']}, which says nothing of it: measure it by its own recipe (leave --recipe out)"
        )
    shape = RecursionShape(**choice.get("recursion", {})) if kind == "recursion" else None
    candidates = _candidates(recipe)
    name = _name(kind, choice.get("inner", {}).get("kind", BARE), shape, candidates)
    passes = result.content.get("scaffold", {}).get("passes", shape.passes if shape else 1) + bool(candidates)
    variant = [part for part in ("residual", "copied", "shared") if shape and getattr(shape, part)]
    return Method(
        name,
        passes,
        layers=shape.layers if shape and shape.places else None,
        pretrained=None if kind == BARE else bool(choice.get("start")),
        variant=", ".join(variant),
        candidates=candidates,
    )


def kind_of(content: Mapping[str, Any]) -> str:
    """Of the scaffold, or the rival, that was measured; older results do not say, but how much was trained."""
    if "scaffold" in content:
        return content["scaffold"]["kind"]
    return content["recipe"]["scaffold"]["kind"] if content["trained"] else BARE


def label_of(kind: str) -> str:
    """What a kind of scaffold is called; by its kind where the package that it comes from is not installed."""
    return KINDS[kind].label if kind in KINDS else kind


def _candidates(recipe: Mapping[str, Any]) -> int:
    """Answers that are sampled for each question; 0 without textual recursion."""
    evidence = recipe.get("evidence") or {}
    return evidence.get("count", 0) if evidence.get("kind") == "candidates" else 0


def _name(kind: str, inner: str, shape: RecursionShape | None, candidates: int) -> str:
    under = UNDER.get(inner, f" under {label_of(inner)}")
    own = f"{_stack(shape)}{under}" if shape else ONE_PASS.get(kind, label_of(kind))
    if not candidates:
        return own
    beside = "" if own == PROMPT_TUNED else f", {own}"  # the paper's own is prompt-tuned twice
    return f"{TEXTUAL} (n={candidates}){beside}"


def _stack(shape: RecursionShape) -> str:
    """Passes and Connectors in their order."""
    parts = ["LM", "Connector"] * (shape.passes - 1) + ["LM"]
    return DASH.join(["Connector"] * shape.before + parts + ["Connector"] * shape.after)


def _adaptive(result: Result) -> Mapping[str, Any] | None:
    """What a result says of adaptive passes; None if each question was given the same number."""
    said = result.content.get("passes")
    if said is not None and not (isinstance(said, dict) and set(said) >= ADAPTIVE):
        raise CorruptFile(f"the results {result.name} lack some of `passes`: {', '.join(sorted(ADAPTIVE))}")
    return said
