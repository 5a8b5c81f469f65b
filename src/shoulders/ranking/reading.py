"""How a retriever's encoders read texts, and what of their states is a text's vector: found out from where they lie."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from transformers import AutoConfig
from transformers.utils.hub import cached_file

from shoulders.backbone.sources import hub_errors, locate
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.files import check_format
from shoulders.ranking.towers import DPR, Text

CLS, MEAN = "cls", "mean"
POOLINGS = (CLS, MEAN)
OURS, MODULES = "retriever.json", "modules.json"
FORMAT, VERSION = "shoulders-retriever", 1
SHARED, QUESTION, PASSAGE = "encoder", "question", "passage"  # folders of a saved retriever
PAIRS = "question_encoder", "ctx_encoder"  # what tells DPR's two repositories apart
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query", "question"), ("document", "passage", "corpus")
USUAL = 256  # tokens


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """What goes into a retriever's encoders, and what is taken out.

    Attributes:
        pooling: a text's vector is the state of its first token ("cls") or the mean of all its states ("mean").
        normalised: vectors have length one.
        pair: a passage is read as `title [SEP] text`, as in DPR; else as one text, the title in its first line.
        longest: tokens of a question or passage.
        question_prefix: what a question begins with, e.g. "query: ".
        passage_prefix: what a passage begins with.
    """

    pooling: str = MEAN
    normalised: bool = False
    pair: bool = False
    longest: int = USUAL
    question_prefix: str = ""
    passage_prefix: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UnknownName("pooling", self.pooling, POOLINGS)
        if self.longest < 3:
            raise UsageError(f"texts of {self.longest} tokens at most: 3 at least, {USUAL} are usual")

    def questions(self, texts: Sequence[str]) -> list[Text]:
        """Questions as they are read."""
        return [f"{self.question_prefix}{text}" for text in texts]

    def passages(self, titles: Sequence[str], texts: Sequence[str]) -> list[Text]:
        """Passages as they are read.

        DPR: Karpukhin et al. 2020, section 4.1, and `dpr/models/hf_models.py`; all segments are the
        first. Others: title and text as one, as BEIR does (Thakur et al. 2021), which has a space for our line end; to
        BERT's tokenizers these are the same.
        """
        both = zip(titles, texts, strict=True)
        if self.pair:
            return list(both)
        return [
            f"{self.passage_prefix}{title}\n{text}" if title else f"{self.passage_prefix}{text}" for title, text in both
        ]


DPR_READING = Reading(CLS, pair=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the encoders of a retriever lie, as names and subfolders of these; one place if they are one encoder."""

    question: tuple[str, str]
    passage: tuple[str, str]
    reading: Reading


def place_of(name: str) -> Place:
    """Find out what a name stands for.

    Raises:
        SourceNotFound, HubUnreachable: nothing is there by that name.
        UsageError: it is a retriever of a kind that is not read.
        CorruptFile: what describes it is broken.
    """
    if "|" in name:
        question, _, passage = name.partition("|")
        return Place((question, ""), (passage, ""), place_of(passage).reading)
    ours = _json_of(name, OURS)
    if ours is not None:
        return _our_place(name, ours)
    modules = _json_of(name, MODULES)
    if modules is not None:
        return _place_of_modules(name, modules)
    with hub_errors(name):
        config = AutoConfig.from_pretrained(locate(name))
    return _dpr_place(name) if config.model_type == DPR else Place((name, ""), (name, ""), Reading())


def saved(reading: Reading, *, shared: bool) -> dict[str, Any]:
    """What is kept beside the encoders of a retriever of ours."""
    return {"format": FORMAT, "version": VERSION, "shared": shared, "reading": asdict(reading)}


def reading_from(values: Any, what: str) -> Reading:
    """The reading that was kept as JSON.

    Raises:
        CorruptFile: it is none.
    """
    try:
        return Reading(**{item.name: values[item.name] for item in fields(Reading)})
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{what} does not say how texts are read ({error!r}): make it again") from error


def _our_place(name: str, content: Any) -> Place:
    content = content if isinstance(content, dict) else {}
    check_format(content, (FORMAT, VERSION), name, "train it again")
    reading = reading_from(content.get("reading"), f"{name}/{OURS}")
    question, passage = (SHARED, SHARED) if content.get("shared") else (QUESTION, PASSAGE)
    return Place((name, question), (name, passage), reading)


def _dpr_place(name: str) -> Place:
    """DPR's two encoders by the name of one; one of another name is both, as Spider (Ram et al. 2022)."""
    question, passage = name, name
    for mark in PAIRS:
        if mark in name:
            question, passage = (name.replace(mark, other) for other in PAIRS)
    return Place((question, ""), (passage, ""), DPR_READING)


def _place_of_modules(name: str, modules: Any) -> Place:
    """A sentence-transformers model: a transformer, a pooling, and vectors that are normalised or not."""
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"{name} is a sentence-transformers model of {', '.join(kinds)}: read are those of Transformer, Pooling "
            "and Normalize"
        )
    body, pooling = modules[0]["path"], _json_of(name, f"{modules[1]['path']}/config.json") or {}
    limits = _json_of(name, f"{body}/sentence_bert_config.json".removeprefix("/")) or {}
    prompts = (_json_of(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    reading = Reading(
        _pooling_of(name, pooling),
        normalised=len(kinds) > 2,
        longest=limits.get("max_seq_length") or USUAL,
        question_prefix=_first(prompts, QUERY_PROMPTS),
        passage_prefix=_first(prompts, PASSAGE_PROMPTS),
    )
    return Place((name, body), (name, body), reading)


def _pooling_of(name: str, config: dict[str, Any]) -> str:
    flags = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    chosen = [mode for mode, flag in flags.items() if config.get(flag) or config.get("pooling_mode") == mode]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or any(key not in flags.values() for key in others):
        raise UsageError(
            f"{name} pools by {', '.join(others) or 'nothing that is known'}: known are {', '.join(POOLINGS)}"
        )
    return chosen[0]


def _first(prompts: dict[str, str], names: Sequence[str]) -> str:
    return next((prompts[name] for name in names if prompts.get(name)), "")


def _json_of(name: str, file: str) -> Any:
    """A JSON file of a folder or hub repository; None if it has no such file."""
    with hub_errors(name):
        path = cached_file(locate(name), file, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error
