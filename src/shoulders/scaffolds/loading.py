"""Scaffolds by name; whoever loads one by its folder has every kind at hand."""

from shoulders.backbone.frozen import FrozenLM
from shoulders.scaffolds import input_prompt, recursion, soft_prompt  # noqa: F401 (each makes its kind known)
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.storage import scaffold_folder

BARE = Bare.kind  # names the model without a scaffold


def scaffold_named(name: str, lm: FrozenLM) -> Scaffold:
    """Return the scaffold of that run, folder or hub name around its backbone, or none for "bare".

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: as `Scaffold.load`.
    """
    return Bare() if name == BARE else Scaffold.load(scaffold_folder(name), lm)
