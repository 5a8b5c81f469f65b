"""Pretrained text encoders that are trained here, and how the vector of a text is read from their states.

They are the towers of a retriever and the body of a re-ranker.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BatchEncoding,
    BertConfig,
    BertModel,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from shoulders.backbone import fingerprint
from shoulders.backbone.encoder import positions_read
from shoulders.backbone.frozen import pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.records import Tokens
from shoulders.store.files import check_format, hub_errors

RERANKER = "reranker"

DPR = "dpr"  # transformers' name of DPR's encoders
Text = str | tuple[str, str]  # a text, or two that are read as a pair


@final
class Tower(nn.Module):
    """A BERT-like encoder that trains, with its tokenizer. Its weights are fp32; it multiplies in `compute`.

    A pair of texts is one row with separators; as in DPR, segments are all of the first type.

    Attributes:
        name: the source it was loaded from.
        width: E, the size of a final state.
        context: positions that it can read.
        compute: the type of its matrix products, in training and after.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, compute: torch.dtype
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name, self.compute = model, tokenizer, name, compute
        self.width = model.config.hidden_size
        self.context = min(positions_read(model), tokenizer.model_max_length)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto", subfolder: str = "") -> Self:
        """Load an encoder by hub id, folder or package (`shoulders.backbone.sources`); of DPR's, the BERT inside.

        Args:
            dtype: of its matrix products: "auto" (bf16 where the device multiplies it fast, else fp32), or a name.
            subfolder: where in the folder or repository it lies.

        Raises:
            SourceNotFound, HubUnreachable: there is no such model, or it cannot be fetched.
            CorruptFile: it lacks weights, or has others.
        """
        place = pick_device(device)
        folder = locate(name)
        tokenizer = load_tokenizer(name, folder, subfolder=subfolder)
        with hub_errors(name):
            config = AutoConfig.from_pretrained(folder, subfolder=subfolder)
        model = _body(name, folder, config, subfolder)
        return cls(model.to(place).eval(), tokenizer, name, pick_dtype(dtype, place))  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as transformers reads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def rows(self, texts: Sequence[Text], longest: int) -> list[list[int]]:
        """Token ids of texts with the encoder's special tokens; of pairs the second is cut to fit, of others the end.

        Args:
            longest: tokens of a row at most; never more than the encoder's context.
        """
        if not texts:
            return []
        first, second = [], []
        for text in texts:
            one, other = (text, None) if isinstance(text, str) else text
            first.append(one)
            second += [other] if other is not None else []
        cut = "only_second" if second else True
        longest = min(longest, self.context)
        return self.tokens(first, second or None, truncation=cut, max_length=longest).input_ids

    def tokens(self, *texts: Any, **settings: Any) -> BatchEncoding:
        """Read texts with the tokenizer as they stand (`tokenizing.tokenized`)."""
        return tokenized(self.tokenizer, token_table(self.model).shape[0], *texts, **settings)

    def padded(self, rows: list[list[int]]) -> Tokens:
        """Rows as one batch on the encoder's device."""
        pad = self.tokenizer.pad_token_id
        return pad_right(rows, pad if isinstance(pad, int) else 0).to(self.device)

    def states(self, tokens: Tokens) -> Float[Tensor, "B S E"]:
        """Final hidden states, in fp32."""
        mask = None if tokens.mask is None else tokens.mask.long()
        with self._multiplying():
            found = self.model(input_ids=tokens.ids, attention_mask=mask).last_hidden_state
        return found.float()

    def lowered(self) -> "Tower":
        """A copy with weights of the type it multiplies in, not to be trained: faster than casting for every batch."""
        if self.compute == self.model.dtype:
            return self
        return Tower(deepcopy(self.model).to(self.compute), self.tokenizer, self.name, self.compute)  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """Which weights these are, to the last bit: training moves them by less than bf16 can tell."""
        return fingerprint.checksum(self.model)

    def _multiplying(self) -> AbstractContextManager[object]:
        if self.compute == self.model.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, self.compute)


def _body(name: str, folder: str, config: PreTrainedConfig, subfolder: str) -> PreTrainedModel:
    if config.model_type == DPR:
        return _body_of_dpr(name, folder, config, subfolder)
    model = load_whole(AutoModel, name, folder, body=True, dtype=torch.float32, subfolder=subfolder)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # nothing reads it, and where it was not saved it is random
    return model


def _body_of_dpr(name: str, folder: str, config: PreTrainedConfig, subfolder: str) -> PreTrainedModel:
    """The BERT of either of DPR's encoders; transformers' AutoModel reads both as the one of questions."""
    if config.projection_dim:
        raise UsageError(f"{folder} projects its vectors to {config.projection_dim} numbers: name one that does not")
    passages = "DPRContextEncoder" in (config.architectures or [])
    kind = DPRContextEncoder if passages else DPRQuestionEncoder
    whole = load_whole(kind, name, folder, body=True, dtype=torch.float32, subfolder=subfolder)
    inner = (whole.ctx_encoder if passages else whole.question_encoder).bert_model
    values = {key: value for key, value in config.to_dict().items() if key in BertConfig().to_dict()}
    body = BertModel(BertConfig(**{**values, "model_type": BertConfig.model_type}), add_pooling_layer=False)
    body.load_state_dict(inner.state_dict())
    return body


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
