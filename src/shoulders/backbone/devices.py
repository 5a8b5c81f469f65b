"""Which device and number type to use when the user leaves it open."""

import sys

import torch
from accelerate import Accelerator

from shoulders.errors import UnknownName, UsageError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The named device; for "auto" the one that Accelerate gives this process.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return Accelerator().device  # not PartialState's: only this one heeds ACCELERATE_USE_CPU
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        raise UsageError(
            f"backbone.device={name} cannot be used here ({first_line(error)}): 'auto' takes what there is"
        ) from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named type; for "auto" bf16 where the device multiplies it faster than fp32, else fp32."""
    if name != "auto":
        if name not in DTYPES:
            raise UnknownName("dtype", name, [*DTYPES, "auto"])
        return DTYPES[name]
    if device.type != "cpu":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    fast = any(able.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def peak_memory(device: torch.device) -> int:
    """Bytes held at most since this process began: on an accelerator by PyTorch, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit
