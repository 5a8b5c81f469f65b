"""Scaffolds: all that trains around the frozen model. One file for each method; `base` has the class they share."""

from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.peft import PrefixTuning
from shoulders.scaffolds.soft_prompt import SoftPrompt

__all__ = ["Bare", "InputPrompt", "PrefixTuning", "Scaffold", "SoftPrompt"]
