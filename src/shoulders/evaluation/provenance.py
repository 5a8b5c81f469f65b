"""Where a result comes from: enough to repeat it, and to tell two results apart."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.scaffolds.base import Scaffold

LIBRARIES = ("shoulders", "torch", "transformers", "accelerate", "safetensors", "tokenizers")
OPTIONAL = ("datasets", "sacrebleu", "rouge-score")  # they decide on scores where they are installed
PACKAGE = Path(__file__).resolve().parents[1]


def provenance(recipe: Mapping[str, Any], lm: FrozenLM | FrozenEncoderDecoder) -> dict[str, Any]:
    """Recipe, model, code, libraries, machine and time of a result."""
    return {
        "recipe": dict(recipe),
        "backbone": {"name": lm.name, "fingerprint": lm.fingerprint(), "dtype": str(lm.dtype).removeprefix("torch.")},
        **circumstances(),
    }


def scaffold_measured(scaffold: Scaffold, name: str | None) -> dict[str, Any]:
    """Which scaffold a result belongs to, and which encoder it reads with. `name` is where it lies; None for none."""
    encoder = scaffold.encoder
    return {
        "kind": scaffold.kind,
        "passes": scaffold.passes,
        "name": name,
        "fingerprint": identity(scaffold),
        "encoder": encoder and {"name": encoder.name, "fingerprint": encoder.fingerprint()},
    }


def circumstances(*libraries: str) -> dict[str, Any]:
    """Code, versions (also of the named libraries), machine and time of a measurement."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),  # of the code, not of what it writes
        "versions": _versions(libraries),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
    """What git says of the checkout that this code runs from; None where there is none.

    A package installed inside somebody else's repository (their .venv) is not in a checkout of its own.
    """
    top = _git_output("rev-parse", "--show-toplevel")
    if top is None or (Path(top) / "src" / "shoulders").resolve() != PACKAGE:
        return None
    return _git_output(*arguments)


def _git_output(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
