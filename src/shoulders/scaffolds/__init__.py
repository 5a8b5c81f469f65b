"""Scaffolds: all that trains around the frozen model. One file for each method; `base` has the class they share."""

from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt, InputDeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.low_rank import GatedLowRank, GatedScales, LowRank, Scales
from shoulders.scaffolds.soft_prompt import SoftPrompt

__all__ = [
    "Bare", "DeepPrompt", "GatedLowRank", "GatedScales", "InputDeepPrompt", "InputPrompt", "LowRank", "Scaffold",
    "Scales", "SoftPrompt",
]  # fmt: skip
