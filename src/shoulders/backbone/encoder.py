"""The small frozen text encoder of ID-PT (paper, section 2.1: T5-base); any Hugging Face encoder can be one."""

from typing import Protocol, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from shoulders.backbone import fingerprint
from shoulders.backbone.checkpointing import checkpointed
from shoulders.backbone.frozen import UNLIMITED, pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.shapes import NoTokenizer, config_named, text_length
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.records import Tokens
from shoulders.store.files import hub_errors


class Encoder(Protocol):
    """The encoder of ID-PT: a `FrozenEncoder`, or the `FrozenLM` itself."""

    name: str
    width: int
    context: int  # number of positions that it can read, an encoder prompt included

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of rows of the embedding matrix."""
        ...

    def embed(self, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S E"]:
        """Return the token embeddings."""
        ...

    def states(self, embeds: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S E"]:
        """Return the final hidden states."""
        ...

    def source_tokens(self, texts: list[str], reserved: int) -> Tokens:
        """Return the texts as token ids, padded at the end and cut to leave `reserved` positions free."""
        ...

    def fingerprint(self) -> str:
        """Return a hash over all weights that identifies the model."""
        ...


@final
class FrozenEncoder:
    """A pretrained text encoder whose weights never change; a plain object like `FrozenLM`, never trained or saved."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.width = token_table(model).shape[1]
        self.context = positions_read(model)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> Self:
        """Load an encoder by hub id, folder or package; of an encoder-decoder model only its encoder.

        On the device "meta" no weights are read.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: see `FrozenLM.load`.
        """
        place = pick_device(device)
        if place.type == "meta":
            with place:
                model = AutoModelForTextEncoding.from_config(config_named(name), dtype=pick_dtype(dtype, place))
            return cls(model, NoTokenizer(text_length(name)), name)  # type: ignore[arg-type] (no text is read)
        folder = locate(name)
        tokenizer = load_tokenizer(name, folder)
        with hub_errors(name):
            config = AutoConfig.from_pretrained(folder)
        kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
        model = load_whole(kind, name, folder, body=True, dtype=pick_dtype(dtype, place))
        if model.config.is_encoder_decoder and hasattr(model, "decoder"):
            model = model.get_encoder()
        return cls(model.to(place), tokenizer, name)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """Number of rows of the embedding matrix."""
        return token_table(self.model).shape[0]

    def embed(self, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S E"]:
        """Return the token embeddings, before positions and normalisation, which are part of `states`."""
        return self.model.get_input_embeddings()(ids)

    def states(self, embeds: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S E"]:
        """Return the final hidden states; gradients reach `embeds`."""
        given = None if mask is None else mask.long()
        with checkpointed(self.model):
            return self.model(inputs_embeds=embeds.to(self.model.dtype), attention_mask=given).last_hidden_state

    def source_tokens(self, texts: list[str], reserved: int) -> Tokens:
        """Return the beginning of each text with the encoder's special tokens, padded at the end."""
        longest = min(self.context - reserved, self.tokenizer.model_max_length)
        rows = tokenized(self.tokenizer, self.vocabulary, texts, truncation=True, max_length=longest).input_ids
        pad = self.tokenizer.pad_token_id
        return pad_right(rows, pad if isinstance(pad, int) else 0)

    def fingerprint(self) -> str:
        """Return a hash over all weights that identifies the model, whatever type it is loaded in."""
        return fingerprint.identity(self.model)


def positions_read(model: PreTrainedModel) -> int:
    """Return the number of positions that an encoder was made for; `UNLIMITED` if nothing says so."""
    table = getattr(model.config, "max_position_embeddings", None)
    if table is None:
        return UNLIMITED
    # RoBERTa and related models count positions from the padding index on.
    offset = model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0
    return table - offset


def embedding_norm(model: Encoder) -> float:
    """Return the mean length of a thousand token embeddings, the scale of new prompts; 1 on the meta device."""
    ids = torch.linspace(0, model.vocabulary - 1, min(1000, model.vocabulary), device=model.device).long()
    rows = model.embed(ids[None])[0]
    return 1.0 if rows.is_meta else torch.linalg.vector_norm(rows.float(), dim=-1).mean().item()
