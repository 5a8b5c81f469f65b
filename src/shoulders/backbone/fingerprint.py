"""Two hashes over a model's weights: one identifies the model, one proves that no bit of it has changed."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def identity(model: nn.Module) -> str:
    """Return a hash over the saved weights that is the same on every device, in fp32 and in bf16.

    Floating-point weights are rounded to bf16 first. A model loaded in fp16 has the same hash only if it was saved in
    bf16 or fp16: an fp32 weight that is rounded twice may differ from one that is rounded once.
    """
    return _digest((name, _rounded(tensor)) for name, tensor in model.state_dict().items())


def checksum(model: nn.Module) -> str:
    """Return a hash over every bit of every weight and buffer."""
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
