"""Activation checkpointing: layers of a frozen stack that compute themselves again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_layers import GradientCheckpointingLayer

_CHECKPOINTING: ContextVar[bool] = ContextVar("checkpointing", default=False)


@contextmanager
def checkpointing(on: bool = True) -> Iterator[None]:
    """Keep only the inputs of layers for the backward pass of what runs meanwhile; it computes each layer again.

    With weights that are streamed in this is so in any case: the backward pass would otherwise need all of them held.
    """
    token = _CHECKPOINTING.set(on)
    try:
        yield
    finally:
        _CHECKPOINTING.reset(token)


def recomputes(stack: nn.Module) -> bool:
    """Return whether the layers of a stack are to be computed again in the backward pass."""
    return torch.is_grad_enabled() and (_CHECKPOINTING.get() or streamed(stack))


def streamed(stack: nn.Module) -> bool:
    """Return whether weights are brought in from disk or memory when their layer runs (accelerate's hooks)."""
    away = any(weight.is_meta for weight in stack.parameters())
    return away and any(hasattr(module, "_hf_hook") for module in stack.modules())


@contextmanager
def checkpointed(stack: nn.Module, past: object | None = None) -> Iterator[None]:
    """Make a stack's layers compute themselves again in the backward pass, if that is asked for (`checkpointing`).

    transformers' own switch drops the cache of keys and values, which prompts in every layer need.

    Args:
        past: the cache that the stack is about to extend. The second computation starts from what it holds now.
    """
    layers = past.layers if isinstance(past, Cache) else []
    again = all(type(one) in (DynamicLayer, DynamicSlidingWindowLayer) or hasattr(one, "copied") for one in layers)
    if not recomputes(stack) or not again:
        yield  # caches of states that change in place cannot be read twice
        return
    before, layers = _copied(past), _outermost(stack)
    own = [vars(layer).get("forward") for layer in layers]  # accelerate's hooks stand in its place
    for layer in layers:
        # Stopping early saves the last product of a layer, but would leave weights that were streamed in.
        hooked = any(hasattr(part, "_hf_hook") for part in layer.modules())
        layer.forward = partial(_recomputed, layer.forward, past, before, not hooked)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _outermost(stack: nn.Module) -> list[nn.Module]:
    """Return the layers of a stack that transformers would compute again, none within another."""
    found: dict[str, nn.Module] = {}
    for name, module in stack.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, GradientCheckpointingLayer) and not inner:
            found[name] = module
    return list(found.values())


def _recomputed(
    forward: Callable[..., Any], past: object, before: object, early: bool, *args: Any, **kwargs: Any
) -> Any:
    """Run a layer so that autograd keeps its inputs alone.

    The second run reads a copy of the cache as it was, with the context variables of the first.
    """
    runs, context = 0, copy_context()

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return forward(*args, **kwargs)
        fresh = _copied(before)
        args = tuple(fresh if one is past and past is not None else one for one in args)
        kwargs = {name: fresh if one is past and past is not None else one for name, one in kwargs.items()}
        return context.run(forward, *args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, early_stop=early, **kwargs)


def _copied(past: Any) -> Any:
    """Return a copy of a cache that is extended without the original; their tensors are the same.

    A layer that must not be copied as it is has a method `copied`.
    """
    if past is None:
        return None
    fresh = copy(past)
    fresh.layers = [layer.copied() if hasattr(layer, "copied") else copy(layer) for layer in past.layers]
    return fresh
