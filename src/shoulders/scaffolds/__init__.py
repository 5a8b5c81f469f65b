"""What is trained around the frozen model. Importing this package makes every kind of scaffold known to `load`."""

from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.peft import PrefixTuning
from shoulders.scaffolds.soft_prompt import SoftPrompt

__all__ = ["Bare", "InputPrompt", "PrefixTuning", "Scaffold", "SoftPrompt"]
