"""More out of one frozen language model: train what stands around it, measure it, keep it, ask it.

Load a model (`FrozenLM`), make a scaffold (`SoftPrompt`, `DeepPrompt`, `LowRank`, `Scales`; `InputPrompt`,
`InputDeepPrompt`, `GatedLowRank`, `GatedScales`; `Recursion`), then `train`, `evaluate`, `save` and `open` it. `Index`
holds passages to read. A scaffold of your own is a `Scaffold` with a `ScaffoldConfig`: its `Program` is given a
`ScaffoldInput` and a `Memory` and asks for a `Pass`; `TrainingData` says what it is to be trained on.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoulders.answering import Answerer, open
    from shoulders.answering.spec import AnswerSpec
    from shoulders.backbone.caches import Memory
    from shoulders.backbone.encoder import FrozenEncoder
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.engine.inference import Answering, Sampling, answer, answered, rank, sample
    from shoulders.errors import UsageError
    from shoulders.records import Answer, Placement, Question, ScaffoldInput
    from shoulders.retrieval.index import Index
    from shoulders.runs.api import TrainedRun, evaluate, train
    from shoulders.scaffolds.base import Bare, Scaffold, ScaffoldConfig, TrainingData
    from shoulders.scaffolds.deep_prompt import DeepPrompt, InputDeepPrompt
    from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
    from shoulders.scaffolds.low_rank import GatedLowRank, GatedScales, LowRank, Scales
    from shoulders.scaffolds.program import Pass, Program
    from shoulders.scaffolds.recursion import Recursion, RecursionShape
    from shoulders.scaffolds.soft_prompt import SoftPrompt

__version__ = "0.1.0"

# Loaded when first used: importing PyTorch takes seconds that `shoulders --help` need not wait for.
_HOMES = {
    "Answer": "records",
    "AnswerSpec": "answering.spec",
    "Answerer": "answering",
    "Answering": "engine.inference",
    "Bare": "scaffolds.base",
    "DeepPrompt": "scaffolds.deep_prompt",
    "FrozenEncoder": "backbone.encoder",
    "FrozenLM": "backbone.frozen",
    "GatedLowRank": "scaffolds.low_rank",
    "GatedScales": "scaffolds.low_rank",
    "Index": "retrieval.index",
    "InputDeepPrompt": "scaffolds.deep_prompt",
    "InputPrompt": "scaffolds.input_prompt",
    "InputPromptShape": "scaffolds.input_prompt",
    "LowRank": "scaffolds.low_rank",
    "Memory": "backbone.caches",
    "Pass": "scaffolds.program",
    "Placement": "records",
    "Program": "scaffolds.program",
    "Question": "records",
    "Recursion": "scaffolds.recursion",
    "RecursionShape": "scaffolds.recursion",
    "Sampling": "engine.inference",
    "Scaffold": "scaffolds.base",
    "ScaffoldConfig": "scaffolds.base",
    "ScaffoldInput": "records",
    "Scales": "scaffolds.low_rank",
    "SoftPrompt": "scaffolds.soft_prompt",
    "TrainedRun": "runs.api",
    "TrainingData": "scaffolds.base",
    "UsageError": "errors",
    "answer": "engine.inference",
    "answered": "engine.inference",
    "evaluate": "runs.api",
    "open": "answering",
    "rank": "engine.inference",
    "sample": "engine.inference",
    "train": "runs.api",
}
__all__ = [
    "Answer",
    "AnswerSpec",
    "Answerer",
    "Answering",
    "Bare",
    "DeepPrompt",
    "FrozenEncoder",
    "FrozenLM",
    "GatedLowRank",
    "GatedScales",
    "Index",
    "InputDeepPrompt",
    "InputPrompt",
    "InputPromptShape",
    "LowRank",
    "Memory",
    "Pass",
    "Placement",
    "Program",
    "Question",
    "Recursion",
    "RecursionShape",
    "Sampling",
    "Scaffold",
    "ScaffoldConfig",
    "ScaffoldInput",
    "Scales",
    "SoftPrompt",
    "TrainedRun",
    "TrainingData",
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
