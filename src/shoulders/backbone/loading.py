"""Loading models and tokenizers by transformers' `from_pretrained`, whole or not at all.

transformers fills in random weights where a checkpoint lacks some, and ignores weights that its model has no place for.
Here both raise an error that names them, for every kind of model.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shoulders.backbone.tokenizing import keep_text
from shoulders.errors import CorruptFile
from shoulders.store.files import hub_errors

# Causal masks that GPT-2, GPT-J, GPT-NeoX and related models once saved with the weights; they are computed now.
OLD_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$")
POOLER = "pooler."  # a layer after an encoder's states, which is not used here; many checkpoints have none


def load_tokenizer(name: str, folder: str, kind: Any = AutoTokenizer, **settings: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a located model, set to read special tokens that are spelled out in a text as text.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: see `hub_errors`.
    """
    with hub_errors(name):
        return keep_text(kind.from_pretrained(folder, **settings))


def load_whole(kind: Any, name: str, folder: str, *, body: bool = False, **settings: Any) -> Any:
    """Load a located model whose checkpoint has exactly its weights.

    Tied weights need to be there only once; weights that transformers itself computes need not be there.

    Args:
        kind: a class with `from_pretrained`.
        name: the user's name for the model.
        folder: where it is (`sources.locate`).
        body: load an encoder for its final states: ignore heads in its checkpoint, and do without a missing pooler.
        settings: arguments of `from_pretrained`.

    Raises:
        SourceNotFound, HubUnreachable: see `hub_errors`.
        CorruptFile: a tensor is missing, has another shape, or has no place in the model.
    """
    with hub_errors(name), _unreported():
        model, found = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if body:
        unexpected = {key for key in unexpected if _within(model, key)}
        if any(POOLER in key for key in missing) and hasattr(model, "pooler"):
            model.pooler = None
        missing = {key for key in missing if POOLER not in key}
    _check(name, f"a {type(model).__name__}", missing, found["mismatched_keys"], unexpected)
    return model


@contextmanager
def _unreported() -> Iterator[None]:
    """Silence transformers' table of tensors that do not fit, which advises to train them."""
    log, of_others = logging.getLogger("transformers.modeling_utils"), lambda record: "LOAD REPORT" not in record.msg
    log.addFilter(of_others)
    try:
        yield
    finally:
        log.removeFilter(of_others)


def _within(model: PreTrainedModel, key: str) -> bool:
    """Return whether a tensor belongs to the encoder itself and not to a head."""
    parts = {model.base_model_prefix, *(part for part, _ in model.named_children())}
    return POOLER not in key and key.split(".")[0] in parts


def _check(name: str, what: str, missing: Iterable[str], mismatched: Iterable[Any], unexpected: Iterable[str]) -> None:
    """Raise `CorruptFile` if any tensor does not fit."""
    problems = [
        _counted(sorted(missing), "is missing", "are missing"),
        _counted(
            [f"{key} {tuple(found)} in place of {tuple(wanted)}" for key, found, wanted in sorted(mismatched)],
            "has another shape",
            "have other shapes",
        ),
        _counted(
            sorted(key for key in unexpected if not OLD_BUFFERS.search(key)),
            "has no place in it",
            "have no place in it",
        ),
    ]
    if any(problems):
        raise CorruptFile(
            f"the weights of {name!r} are not those of {what}: {'; '.join(filter(None, problems))}: name a checkpoint "
            "that was saved whole, by a model of this kind"
        )


def _counted(tensors: list[str], one: str, several: str) -> str:
    """Return the number of tensors with a problem and the first three of them; "" if there are none."""
    if len(tensors) > 1:
        return f"{len(tensors)} tensors {several} ({', '.join(tensors[:3])}{', ...' if len(tensors) > 3 else ''})"
    return f"{tensors[0]} {one}" if tensors else ""
