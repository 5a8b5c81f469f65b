"""Cross-encoders that others trained: sequence classifiers with one label, as sentence-transformers keeps them.

Source: Nogueira & Cho 2019 (passage re-ranking with BERT); sentence-transformers' `CrossEncoder`.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Self, final

import torch
from jaxtyping import Float
from tokenizers import Encoding
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from shoulders.backbone import fingerprint
from shoulders.backbone.devices import pick_device, pick_dtype
from shoulders.backbone.encoder import positions_read
from shoulders.backbone.frozen import pad_right
from shoulders.backbone.heads import token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.sources import locate
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UsageError
from shoulders.ranking.first import for_scoring
from shoulders.ranking.scoring import OnScored, Pair, scored
from shoulders.ranking.seen import Seen

TYPES = "token_type_ids"


@final
class CrossEncoder:
    """A ranker that scores `[CLS] question [SEP] title passage [SEP]` by its one label, before any activation.

    The longer of question and passage is cut where both do not fit. Which questions it was trained on is not known.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, compute: torch.dtype
    ) -> None:
        _check(model, tokenizer, name)
        self.seen = Seen()
        self._tokenizer, self._device = tokenizer, model.device
        self._longest = min(positions_read(model), tokenizer.model_max_length)
        self._typed = TYPES in tokenizer.model_input_names
        self._pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        parts = f"{fingerprint.checksum(model)}/{compute}/{self._longest}"
        self.fingerprint = blake2b(parts.encode(), digest_size=16).hexdigest()
        self._model = for_scoring(model, compute)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> Self:
        """Load one by hub id, folder or package (`shoulders.backbone.sources`).

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
        """The logit of each pair."""
        return scored(pairs, self._rows, self._logits, self._device, on_scored)

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
            f"{name!r} has {labels} labels, a cross-encoder that orders passages has one: name another, or train a "
            "re-ranker"
        )
    if not tokenizer.is_fast:
        raise UsageError(
            f"{name!r} has a slow tokenizer, and pairs are read with a fast one: name another cross-encoder"
        )
