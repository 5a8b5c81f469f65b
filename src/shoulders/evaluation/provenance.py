"""Where a result comes from: enough to repeat it, and to tell two results apart."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from shoulders.backbone.frozen import FrozenLM

LIBRARIES = ("shoulders", "torch", "transformers", "accelerate", "safetensors")


def provenance(recipe: Mapping[str, Any], lm: FrozenLM) -> dict[str, Any]:
    """Recipe, model, code, libraries, machine and time of a result."""
    return {
        "recipe": dict(recipe),
        "backbone": {"name": lm.name, "fingerprint": lm.fingerprint(), "dtype": str(lm.dtype).removeprefix("torch.")},
        **circumstances(),
    }


def circumstances(*libraries: str) -> dict[str, Any]:
    """Code, versions (also of the named libraries), machine and time of a measurement."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),  # of the code, not of what it writes
        "versions": {name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)},
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """What the result was computed on."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this code runs from; None where there is none."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
