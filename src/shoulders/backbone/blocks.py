"""Decoder blocks of a backbone's own family and shape, to be trained: what a Connector is made of."""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError


def new_blocks(lm: FrozenLM, layers: int) -> PreTrainedModel:
    """A stack of `layers` blocks like the backbone's, random, in fp32, with a final norm and without a vocabulary.

    With no layers, the final norm alone. Attention and positions are the family's own; dropout is off.
    """
    config = block_config(lm.config, layers)
    kernel = getattr(lm.model.config, "_attn_implementation", None)
    stack = cast(PreTrainedModel, AutoModel.from_config(config, dtype=torch.float32, attn_implementation=kernel))
    stack.set_input_embeddings(nn.Identity())  # it reads vectors only, and what never trains must not be there
    return stack


def copy_layers(lm: FrozenLM, stack: PreTrainedModel, numbers: Sequence[int]) -> None:
    """Let the stack's blocks start as those blocks of the backbone, counted from 0.

    Raises:
        UsageError: the backbone does not keep its blocks in one list.
    """
    source, target = _layers(lm.model.base_model, lm.config), _layers(stack, stack.config)
    for block, number in zip(target, numbers, strict=True):
        block.load_state_dict({name: weight.float() for name, weight in source[number].state_dict().items()})


def block_config(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration of a stack of so many of a model's first blocks."""
    smaller = deepcopy(config)
    depth = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # one entry a layer: kinds of attention, windows
            setattr(smaller, name, value[:layers])
        if "drop" in name and isinstance(value, float):
            setattr(smaller, name, 0.0)
    smaller.update({"num_hidden_layers": layers, "vocab_size": 1, "pad_token_id": None})
    return smaller


def _layers(stack: nn.Module, config: PreTrainedConfig) -> nn.ModuleList:
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise UsageError(f"{type(stack).__name__} does not keep its {config.num_hidden_layers} blocks in one list")
