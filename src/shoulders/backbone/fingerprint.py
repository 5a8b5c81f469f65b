"""Two hashes over a model's weights: which model it is, and whether any bit of it has moved."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def identity(model: nn.Module) -> str:
    """Which model this is, on whatever device and in fp32 or bf16 alike: a hash over its saved weights.

    Floating-point weights are rounded to bf16 first, so that the same checkpoint loaded in fp32 and in bf16 has one
    identity. Held in fp16 it has the same one only if it was saved in bf16 or fp16: an fp32 weight rounded twice need
    not be the one rounded once.
    """
    return _digest((name, _rounded(tensor)) for name, tensor in model.state_dict().items())


def checksum(model: nn.Module) -> str:
    """A hash over every bit of every weight and buffer as it is held now: equal before and after, nothing has moved."""
    return _digest([*model.named_parameters(), *model.named_buffers()])


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{name} {tuple(tensor.shape)} {hashlib.sha256(raw.data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run meanwhile
        lines = sorted(pool.map(one, tensors))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
