"""More out of one frozen language model: train what stands around it, measure it, keep it, ask it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoulders.answering import Answerer, open
    from shoulders.answering.spec import AnswerSpec
    from shoulders.backbone.encoder import FrozenEncoder
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.corpus.index import Index
    from shoulders.errors import UsageError
    from shoulders.pipeline import Answering, Sampling, answer, answered, rank, sample
    from shoulders.records import Answer, Question
    from shoulders.runs.api import TrainedRun, evaluate, train
    from shoulders.scaffolds.base import Bare, Scaffold
    from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
    from shoulders.scaffolds.recursion import Recursion, RecursionShape
    from shoulders.scaffolds.soft_prompt import SoftPrompt
    from shoulders.scaffolds.weaving import Placement

__version__ = "0.1.0"

# Loaded when first used: importing PyTorch takes seconds that `shoulders --help` need not wait for.
_HOMES = {
    "Answer": "records",
    "AnswerSpec": "answering.spec",
    "Answerer": "answering",
    "Answering": "pipeline",
    "Bare": "scaffolds.base",
    "FrozenEncoder": "backbone.encoder",
    "FrozenLM": "backbone.frozen",
    "Index": "corpus.index",
    "InputPrompt": "scaffolds.input_prompt",
    "InputPromptShape": "scaffolds.input_prompt",
    "Placement": "scaffolds.weaving",
    "Question": "records",
    "Recursion": "scaffolds.recursion",
    "RecursionShape": "scaffolds.recursion",
    "Sampling": "pipeline",
    "Scaffold": "scaffolds.base",
    "SoftPrompt": "scaffolds.soft_prompt",
    "TrainedRun": "runs.api",
    "UsageError": "errors",
    "answer": "pipeline",
    "answered": "pipeline",
    "evaluate": "runs.api",
    "open": "answering",
    "rank": "pipeline",
    "sample": "pipeline",
    "train": "runs.api",
}
__all__ = [
    "Answer",
    "AnswerSpec",
    "Answerer",
    "Answering",
    "Bare",
    "FrozenEncoder",
    "FrozenLM",
    "Index",
    "InputPrompt",
    "InputPromptShape",
    "Placement",
    "Question",
    "Recursion",
    "RecursionShape",
    "Sampling",
    "Scaffold",
    "SoftPrompt",
    "TrainedRun",
    "UsageError",
    "answer",
    "answered",
    "evaluate",
    "open",
    "rank",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoulders' has no attribute {name!r}")
    return getattr(importlib.import_module(f"shoulders.{_HOMES[name]}"), name)
