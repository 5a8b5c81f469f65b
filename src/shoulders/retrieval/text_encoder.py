"""A pretrained text encoder that can be trained: the body of a bi-encoder and of a re-ranker."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
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

from shoulders.backbone import fingerprint
from shoulders.backbone.encoder import positions_read
from shoulders.backbone.frozen import pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UsageError
from shoulders.records import Tokens
from shoulders.store.files import hub_errors

RERANKER = "reranker"

DPR = "dpr"  # transformers' name of DPR's encoders
Text = str | tuple[str, str]  # a text, or two that are read as a pair


@final
class TextEncoder(nn.Module):
    """A BERT-like encoder that trains, with its tokenizer. Its weights are fp32; it multiplies in `compute`.

    A pair of texts is one row with separators; as in DPR, all segments are of the first type.

    Attributes:
        name: the source it was loaded from.
        width: E, the size of a final state.
        context: positions that it can read.
        compute: the type of its matrix products.
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
            subfolder: its path in the folder or repository.

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
        """Write weights, configuration and tokenizer in transformers' format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    def rows(self, texts: Sequence[Text], longest: int) -> list[list[int]]:
        """Return the token ids of texts with special tokens; of pairs the second text is cut to fit, else the end.

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
        """Tokenise texts unchanged (`tokenizing.tokenized`)."""
        return tokenized(self.tokenizer, token_table(self.model).shape[0], *texts, **settings)

    def padded(self, rows: list[list[int]]) -> Tokens:
        """Return rows as one batch on the encoder's device."""
        pad = self.tokenizer.pad_token_id
        return pad_right(rows, pad if isinstance(pad, int) else 0).to(self.device)

    def states(self, tokens: Tokens) -> Float[Tensor, "B S E"]:
        """Return the final hidden states, in fp32."""
        mask = None if tokens.mask is None else tokens.mask.long()
        with self._multiplying():
            found = self.model(input_ids=tokens.ids, attention_mask=mask).last_hidden_state
        return found.float()

    def cast_to_compute(self) -> "TextEncoder":
        """Return a copy with weights in `compute`, not to be trained: faster than casting for every batch."""
        if self.compute == self.model.dtype:
            return self
        return TextEncoder(deepcopy(self.model).to(self.compute), self.tokenizer, self.name, self.compute)  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """Return a hash of the weights in full precision: training moves them by less than bf16 can represent."""
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
    """Return the BERT of either of DPR's encoders; transformers' AutoModel reads both as the one of questions."""
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
