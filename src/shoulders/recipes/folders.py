"""What a run's folder holds, and which scaffold it stands for."""

from pathlib import Path

from shoulders.files import recovered
from shoulders.scaffolds.storage import CONFIG

RECIPE, CHECKPOINTS, BEST = "recipe.json", "checkpoints", "best"


def scaffold_folder(name: str) -> str:
    """A run's folder stands for its best scaffold."""
    folder = Path(name)
    if (folder / CONFIG).exists():
        return name
    inner = recovered(folder / BEST)
    return str(inner) if (inner / CONFIG).exists() else name
