"""The small frozen text encoder inside ID-PT (paper, section 2.1: T5-base); any Hugging Face encoder serves."""

from typing import Protocol, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from shoulders.backbone import fingerprint
from shoulders.backbone.frozen import UNLIMITED, pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.shapes import NoTokenizer, config_named, text_length
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.records import Tokens
from shoulders.store.files import hub_errors


class Encoder(Protocol):
    """What ID-PT asks of its encoder. `FrozenEncoder` is one; a `FrozenLM` is another, serving as its own encoder."""

    name: str
    width: int
    context: int  # positions it can read, an encoder prompt included

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of its embedding matrix."""
        ...

    def embed(self, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S E"]:
        """Token embeddings."""
        ...

    def states(self, embeds: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S E"]:
        """Final hidden states."""
        ...

    def source_tokens(self, texts: list[str], reserved: int) -> Tokens:
        """The texts as the encoder reads them, padded at the end, cut to leave `reserved` positions free."""
        ...

    def fingerprint(self) -> str:
        """Which model this is."""
        ...


@final
class FrozenEncoder:
    """A pretrained text encoder whose weights never change; like `FrozenLM` a plain object, never trained or saved."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.width = token_table(model).shape[1]
        self.context = positions_read(model)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> Self:
        """Load an encoder by hub id, folder or package; of an encoder-decoder model, its encoder.

        On the device "meta" it has the right shape and no values, and no weights are read.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: as `FrozenLM.load`.
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
        """Where the weights are."""
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding matrix."""
        return token_table(self.model).shape[0]

    def embed(self, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S E"]:
        """Token embeddings (positions and normalisation are added inside `states`)."""
        return self.model.get_input_embeddings()(ids)

    def states(self, embeds: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S E"]:
        """Final hidden states; gradients go through to `embeds`."""
        given = None if mask is None else mask.long()
        return self.model(inputs_embeds=embeds.to(self.model.dtype), attention_mask=given).last_hidden_state

    def source_tokens(self, texts: list[str], reserved: int) -> Tokens:
        """The beginning of each text with the encoder's special tokens, padded at the end."""
        longest = min(self.context - reserved, self.tokenizer.model_max_length)
        rows = tokenized(self.tokenizer, self.vocabulary, texts, truncation=True, max_length=longest).input_ids
        pad = self.tokenizer.pad_token_id
        return pad_right(rows, pad if isinstance(pad, int) else 0)

    def fingerprint(self) -> str:
        """Which model this is, whatever type it is held in."""
        return fingerprint.identity(self.model)


def positions_read(model: PreTrainedModel) -> int:
    """Positions that an encoder was made for; `UNLIMITED` where nothing says."""
    table = getattr(model.config, "max_position_embeddings", None)
    if table is None:
        return UNLIMITED
    # RoBERTa and its kin count positions from the padding index on.
    offset = model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0
    return table - offset


def embedding_norm(model: Encoder) -> float:
    """The mean length of token embeddings, over a thousand of them: the scale that prompts start with.

    On the meta device, where there are no values, 1.
    """
    ids = torch.linspace(0, model.vocabulary - 1, min(1000, model.vocabulary), device=model.device).long()
    rows = model.embed(ids[None])[0]
    return 1.0 if rows.is_meta else torch.linalg.vector_norm(rows.float(), dim=-1).mean().item()
