"""What every use of a backbone relies on, tried out on a few tokens when it is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from shoulders.backbone.memory import PassMemory
from shoulders.backbone.passes import read
from shoulders.errors import SourceNotFound, first_line

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of states, relative


@torch.no_grad()
def check_serves(model: PreTrainedModel) -> None:
    """Refuse a model whose states depend on how a text is read: in two parts, or beside padding.

    State-space models, bidirectional ones and decoders that need an encoder load as causal models and would answer
    wrongly without any error.

    Raises:
        SourceNotFound: this model does.
    """
    if model.device.type == "meta":
        return
    stack = model.base_model
    ids = torch.tensor([[1, 0, 2, 3, 1]], device=model.device)
    with _unfit(model):
        embeds = model.get_input_embeddings()(ids).to(model.dtype)
        whole = read(stack, embeds)
        memory = PassMemory()
        parts = [read(stack, part, memory=memory) for part in embeds.split([3, 1, 1], dim=1)]
        mask = torch.tensor([[False, False, True, True, True, True, True]], device=model.device)
        padded = read(stack, torch.cat([embeds[:, :2], embeds], dim=1), mask)[:, 2:]
    _check_same(model, "read in parts", torch.cat(parts, dim=1), whole)
    _check_same(model, "padded on the left", padded, whole)


@contextmanager
def _unfit(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise SourceNotFound(
            f"{type(model).__name__} does not run on vectors with a mask and a cache of keys and values, so it cannot "
            f"serve as backbone ({first_line(error)})"
        ) from error


def _check_same(model: PreTrainedModel, how: str, found: Float[Tensor, "B T D"], whole: Float[Tensor, "B T D"]) -> None:
    gap = (torch.linalg.vector_norm(found.float() - whole.float()) / torch.linalg.vector_norm(whole.float())).item()
    if not gap <= ROUNDING[model.dtype]:
        raise SourceNotFound(
            f"{type(model).__name__} gives other states when a text is {how} (they differ by {gap:.1%}): it cannot "
            "serve as backbone; it takes a decoder with causal attention"
        )
