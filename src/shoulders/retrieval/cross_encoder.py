"""Published cross-encoders, and loading a ranker of any kind by its name."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, final

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from tokenizers import Encoding
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
    DPRReader,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shoulders.backbone import fingerprint
from shoulders.backbone.encoder import positions_read
from shoulders.backbone.frozen import pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UsageError
from shoulders.retrieval.reranker import DESCRIPTION, Reranker, reranker_folder
from shoulders.retrieval.scoring import OnScored, Pair, Ranker, SeenQuestions, scored, scoring_copy
from shoulders.retrieval.text_encoder import TextEncoder
from shoulders.store.files import hub_errors, recover_folder

TYPES = "token_type_ids"


@final
class CrossEncoder:
    """A ranker that scores `[CLS] question [SEP] title passage [SEP]` by its one label, before any activation.

    The longer of question and passage is cut where both do not fit. The questions that it was trained on are unknown.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, compute: torch.dtype
    ) -> None:
        _check(model, tokenizer, name)
        self.seen, self.order_weight = SeenQuestions(), 0.0
        self._tokenizer, self._device = tokenizer, model.device
        self._longest = min(positions_read(model), tokenizer.model_max_length)
        self._typed = TYPES in tokenizer.model_input_names
        self._pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        parts = f"{fingerprint.checksum(model)}/{compute}/{self._longest}"
        self.fingerprint = blake2b(parts.encode(), digest_size=16).hexdigest()
        self._model = scoring_copy(model, compute)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> Self:
        """Load a cross-encoder by hub id, folder or package (`shoulders.backbone.sources`).

        Raises:
            SourceNotFound, HubUnreachable: there is no such model, or it cannot be fetched.
            CorruptFile: it lacks weights (of its head, where an encoder has none), or has others.
            UsageError: it is no classifier with one label, or its tokenizer is a slow one.
        """
        place = pick_device(device)
        folder = locate(name)
        tokenizer = load_tokenizer(name, folder)
        model = load_whole(AutoModelForSequenceClassification, name, folder, dtype=torch.float32)
        return cls(model.to(place), tokenizer, name, pick_dtype(dtype, place))

    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """Return the logit of each pair."""
        return scored(pairs, self._rows, self._logits, self._device, on_scored)

    def tokens(self, pairs: Sequence[Pair]) -> int:
        """Return the number of tokens that are read to score pairs."""
        return sum(map(len, self._rows(pairs)))

    def _rows(self, pairs: Sequence[Pair]) -> list[Encoding]:
        passages = [f"{pair.title} {pair.text}".strip() for pair in pairs]
        questions = [pair.question for pair in pairs]
        found: Any = tokenized(
            self._tokenizer,
            token_table(self._model).shape[0],
            questions,
            passages,
            truncation="longest_first",
            max_length=self._longest,
        )
        return found.encodings

    def _logits(self, rows: list[Encoding]) -> Float[Tensor, "B"]:
        tokens = pad_right([row.ids for row in rows], self._pad).to(self._device)
        given: dict[str, Tensor] = {}
        if self._typed:
            given[TYPES] = pad_right([row.type_ids for row in rows], 0).ids.to(self._device)
        if len(rows[0]) != len(rows[-1]) and tokens.mask is not None:
            given["attention_mask"] = tokens.mask
        return self._model(input_ids=tokens.ids, **given).logits[:, 0]


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    labels = model.config.num_labels
    if labels != 1:
        raise UsageError(
            f"{name!r} has {labels} labels, a cross-encoder for ranking has one: name another, or train a re-ranker"
        )
    if not tokenizer.is_fast:
        raise UsageError(
            f"{name!r} has a slow tokenizer, and pairs are read with a fast one: name another cross-encoder"
        )


DPR_READER = "DPRReader"
CLASSIFIER = "ForSequenceClassification"


def load_ranker(name: str, *, dtype: str = "auto", device: str = "auto") -> Ranker:
    """Load the model that scores passages, by folder, hub id or package.

    Args:
        dtype: of its matrix products.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: it is a model of another kind.
    """
    if (reranker := load_reranker(name, dtype=dtype, device=device)) is not None:
        return reranker.frozen()
    return CrossEncoder.load(name, dtype=dtype, device=device)


def load_reranker(name: str, *, dtype: str = "auto", device: str = "auto") -> Reranker | None:
    """Load the re-ranker of that name, trained here or published as DPR's reader; None if it is a cross-encoder.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: it is a model of another kind.
    """
    recover_folder(Path(name).expanduser())
    source = locate(name)
    if folder := _folder(source):
        return Reranker.load(folder, dtype=dtype, device=device)
    with hub_errors(name):
        config = AutoConfig.from_pretrained(source)
    architectures = config.architectures or ["of no known kind"]
    if DPR_READER in architectures:
        return load_dpr_reader(name, dtype=dtype, device=device)
    if not architectures[0].endswith(CLASSIFIER):
        raise UsageError(
            f"{name!r} is {architectures[0]}, which cannot rank passages: name a re-ranker trained here, DPR's "
            "reader, or a cross-encoder (a sequence classifier with one label)"
        )
    return None


def load_dpr_reader(name: str, *, dtype: str = "auto", device: str = "auto") -> Reranker:
    """Load DPR's extractive reader in transformers' format (`facebook/dpr-reader-*`).

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: its states are projected before they are used, which the published ones are not.
    """
    place = pick_device(device)
    source = locate(name)
    reader = load_whole(DPRReader, name, source, body=True, dtype=torch.float32)
    tokenizer = load_tokenizer(name, source, BertTokenizer)
    if reader.config.projection_dim:
        raise UsageError(f"{name!r} projects its states to {reader.config.projection_dim}: only plain ones can be read")
    predictor = reader.span_predictor
    plain = {**reader.config.to_dict(), "model_type": "bert", "architectures": None}  # so that it is saved as a BERT
    model: Any = BertModel(BertConfig.from_dict(plain), add_pooling_layer=False)
    model.load_state_dict(predictor.encoder.bert_model.state_dict())
    made = Reranker(TextEncoder(model.to(place).eval(), tokenizer, name, pick_dtype(dtype, place)))
    heads = {"span": predictor.qa_outputs, "relevance": predictor.qa_classifier}
    weights = {f"{head}.{part}": value for head, layer in heads.items() for part, value in layer.state_dict().items()}
    made.load_heads(weights, name)
    return made


def _folder(source: str) -> Path | None:
    """Return the folder of a re-ranker that was trained here, downloaded if need be; None for other models."""
    if Path(source).exists():
        folder = reranker_folder(Path(source))
        return folder if (folder / DESCRIPTION).exists() else None
    with hub_errors(source):
        try:
            hf_hub_download(source, DESCRIPTION)
        except EntryNotFoundError:
            return None
        return Path(snapshot_download(source))
