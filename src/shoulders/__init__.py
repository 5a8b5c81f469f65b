"""More out of one frozen language model: train what stands around it, measure it, keep it, ask it."""

from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError
from shoulders.pipeline import Answering, answer, rank
from shoulders.records import Question
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.weaving import Placement

__version__ = "0.1.0"
__all__ = [
    "Answering",
    "Bare",
    "FrozenEncoder",
    "FrozenLM",
    "InputPrompt",
    "InputPromptShape",
    "Placement",
    "Question",
    "Scaffold",
    "SoftPrompt",
    "UsageError",
    "answer",
    "rank",
]
