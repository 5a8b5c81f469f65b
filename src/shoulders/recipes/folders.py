"""What a run's folder holds, and which scaffold it stands for."""

from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.files import BEST, recovered
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.storage import CONFIG

BARE = Bare.kind  # names the model without a scaffold
RECIPE, CHECKPOINTS = "recipe.json", "checkpoints"


def scaffold_folder(name: str) -> str:
    """A run's folder stands for its best scaffold."""
    folder = Path(name)
    if (folder / CONFIG).exists():
        return name
    inner = recovered(folder / BEST)
    return str(inner) if (inner / CONFIG).exists() else name


def scaffold_named(name: str, lm: FrozenLM) -> Scaffold:
    """The scaffold of that folder or hub name around its backbone, or the bare model.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: as `Scaffold.load`.
    """
    return Bare() if name == BARE else Scaffold.load(name, lm)
