"""Models without weights, for `shoulders plan`: the paper's configurations, and models on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)
from transformers.pytorch_utils import Conv1D

from shoulders.backbone.attention import register, suits
from shoulders.backbone.frozen import UNLIMITED, FrozenLM
from shoulders.backbone.passes import layers_of
from shoulders.backbone.quantizing import NF4, SCHEMES
from shoulders.backbone.sources import locate
from shoulders.errors import SourceNotFound, UnknownName, UsageError
from shoulders.store.files import hub_errors

SHAPE = "shape:"  # beginning of the names of models that are known by shape alone

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    # Jurassic-1 Large: 7.5B parameters, 32 layers of width 4096, a vocabulary of 256K, 2048 positions (Lieber et al.
    # 2021, table 1).
    f"{SHAPE}j1-large": lambda: GPT2Config(vocab_size=256_000, n_positions=2048, n_embd=4096, n_layer=32, n_head=32),
    # Touvron et al. 2023, table 1 (7B); Grattafiori et al. 2024, table 3 (70B and 405B).
    f"{SHAPE}7b": lambda: _llama(32_000, 4096, 11_008, 32, 32, 32),
    f"{SHAPE}70b": lambda: _llama(128_256, 8192, 28_672, 80, 64, 8),
    f"{SHAPE}405b": lambda: _llama(128_256, 16_384, 53_248, 126, 128, 8),
    # Raffel et al. 2019; the paper's encoder.
    "google-t5/t5-base": lambda: T5Config(
        vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12
    ),
}


def _llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, groups: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=8192,
    )  # fmt: skip


# Number of tokens that the tokenizer of such a model cuts texts to (its tokenizer_config.json).
TEXT_LENGTHS = {"google-t5/t5-base": 512}


@dataclass(frozen=True, slots=True)
class NoTokenizer:
    """A stand-in for the tokenizer of a model that reads no text: it has only the length that texts are cut to."""

    model_max_length: int = UNLIMITED
    split_special_tokens: bool = True


def text_length(name: str) -> int:
    """Return the number of tokens that a model's tokenizer cuts a text to; `UNLIMITED` if it has no tokenizer."""
    if name in SHAPES:
        return TEXT_LENGTHS.get(name, UNLIMITED)
    try:
        with hub_errors(name):
            return AutoTokenizer.from_pretrained(locate(name)).model_max_length
    except UsageError:
        return UNLIMITED


def config_named(name: str) -> PreTrainedConfig:
    """Return the configuration of a model by source name; no weights are read.

    Raises:
        SourceNotFound, HubUnreachable: there is no such model, or it cannot be fetched.
    """
    if name in SHAPES:
        return SHAPES[name]()
    with hub_errors(name):
        return AutoConfig.from_pretrained(locate(name))


def meta_backbone(name: str, dtype: torch.dtype, attention: str = "auto", quantize: str = "") -> FrozenLM:
    """Return a backbone without values.

    Args:
        attention: of the kernels only "eager" matters, which keeps its attention matrices, and "cpu" for our own
            (`backbone.attention`), which makes them for a moment.
        quantize: scheme of the linear layers (`quantizing`); they hold, and make, as much memory as quantised ones.

    Raises:
        UnknownName: there is no such scheme.
        SourceNotFound, HubUnreachable: the configuration cannot be loaded, or is no causal model's.
    """
    if quantize and quantize not in SCHEMES:
        raise UnknownName("scheme of quantised weights (backbone.quantize) called", quantize, SCHEMES)
    config = config_named(name)
    if type(config) not in AutoModelForCausalLM._model_mapping:  # noqa: SLF001 (as from_config does)
        raise SourceNotFound(
            f"{name!r} is a {config.model_type} model, not a causal language model: name one (backbone.name=...)"
        )
    with torch.device("meta"):
        kernel = "eager" if attention == "eager" else None
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    if attention == "cpu" and suits(model):
        model.set_attn_implementation(register())
    if quantize:
        layers = layers_of(model, config.get_text_config(decoder=True))
        for path, module in list(layers.named_modules()):
            if isinstance(module, nn.Linear | Conv1D):
                layers.set_submodule(path, QuantizedShape(module, quantize))
    return FrozenLM(model, NoTokenizer(), name)  # type: ignore[arg-type] (no text is read)


class QuantizedShape(nn.Module):
    """A linear layer without values that holds, and makes for a moment, as much memory as one that is quantised."""

    def __init__(self, layer: nn.Linear | Conv1D, scheme: str) -> None:
        super().__init__()
        inner, outer = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        # nf4: half a byte, a scale of one byte for 64 weights and one of 4 for 256 of these, and the tables of both;
        # int8: a scale for each row.
        packed = inner * outer / 2 + inner * outer / 64 * (1 + 4 / 256) + 4 * (16 + 256)
        size = packed if scheme == NF4 else inner * outer + 4 * outer
        self.register_buffer("packed", torch.empty(round(size), dtype=torch.uint8, device="meta"))
        self.bias, self.shape = layer.bias, (outer, inner)

    def forward(self, given: Tensor) -> Tensor:
        """Return the product with a weight that is de-quantised for it."""
        found = _Dequantized.apply(given, self.shape)
        return found if self.bias is None else found + self.bias


class _Dequantized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return given @ given.new_empty(shape).T

    @staticmethod
    # The base class takes any number of gradients.
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None
