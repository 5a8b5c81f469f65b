"""Models without weights, for `shoulders plan`: the paper's configurations, and models on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedConfig, T5Config

from shoulders.backbone.frozen import UNLIMITED, FrozenLM
from shoulders.backbone.sources import locate
from shoulders.errors import SourceNotFound, UsageError
from shoulders.store.files import hub_errors

SHAPE = "shape:"  # beginning of the names of models that are known by shape alone

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    # Jurassic-1 Large: 7.5B parameters, 32 layers of width 4096, a vocabulary of 256K, 2048 positions (Lieber et al.
    # 2021, table 1).
    f"{SHAPE}j1-large": lambda: GPT2Config(vocab_size=256_000, n_positions=2048, n_embd=4096, n_layer=32, n_head=32),
    # Raffel et al. 2019; the paper's encoder.
    "google-t5/t5-base": lambda: T5Config(
        vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12
    ),
}


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


def meta_backbone(name: str, dtype: torch.dtype, attention: str = "auto") -> FrozenLM:
    """Return a backbone without values. Of the kernels only "eager" matters: it keeps its attention matrices."""
    config = config_named(name)
    if type(config) not in AutoModelForCausalLM._model_mapping:  # noqa: SLF001 (as from_config does)
        raise SourceNotFound(
            f"{name!r} is a {config.model_type} model, not a causal language model: name one (backbone.name=...)"
        )
    with torch.device("meta"):
        kernel = "eager" if attention == "eager" else None
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    return FrozenLM(model, NoTokenizer(), name)  # type: ignore[arg-type] (no text is read)
