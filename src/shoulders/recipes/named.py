"""What a name stands for that answers questions: the bare model, a scaffold around it, or a rival of one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, final

from shoulders.adaptive.storage import is_adaptive
from shoulders.backbone.frozen import FrozenLM
from shoulders.corpus.reranked import ALL
from shoulders.errors import UsageError
from shoulders.files import read_json
from shoulders.recipes.extractive import is_extractive
from shoulders.recipes.folders import BARE, RECIPE, scaffold_folder, scaffold_named
from shoulders.recipes.ranking import RETRIEVER
from shoulders.recipes.rivals import Adapted, StoredRival, load_rival, read_rival, rival_folder
from shoulders.scaffolds.storage import Origin, read_origin


@final
@dataclass(frozen=True, slots=True)
class Named:
    """Something that answers, before a weight is loaded.

    Attributes:
        name: its folder or hub name, a run's best; "bare".
        origin: the backbone that it was trained around or made from, and how; None for the bare model.
        rival: its files, if it is a rival.
    """

    name: str
    origin: Origin | None = None
    rival: StoredRival | None = None

    @classmethod
    def of(cls, name: str) -> Self:
        """What a run's folder, a scaffold's or rival's own, a hub name, or "bare" stands for.

        Raises:
            UsageError: it is something else: what orders passages, or several scaffolds.
            SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        """
        if name == BARE:
            return cls(name)
        if folder := rival_folder(name):
            stored = read_rival(folder)
            return cls(str(folder), stored.origin, stored)
        _check_answers(name)
        name = scaffold_folder(name)
        return cls(name, read_origin(name))

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What it was trained by, as it is kept; nothing for the bare model."""
        return self.origin.recipe if self.origin else {}

    def around(self, lm: FrozenLM) -> Adapted:
        """What answers, loaded, in the number type and on the device of the backbone.

        Args:
            lm: the backbone.

        Raises:
            SourceNotFound, CorruptFile, WrongBackbone: as `Scaffold.load` and `load_rival`.
        """
        if self.rival:
            held = replace(
                self.rival.recipe.backbone, dtype=str(lm.dtype).removeprefix("torch."), device=str(lm.device)
            )
            return load_rival(self.rival, replace(self.rival.recipe, backbone=held), lm)
        return Adapted(lm, scaffold_named(self.name, lm))


def _check_answers(name: str) -> None:
    """Raise `UsageError` for a folder that holds something else, with what it is for."""
    folder = Path(name).expanduser()
    if is_adaptive(folder):
        raise UsageError(f"{name} puts several scaffolds in order of cost: name one of them, a run of its own")
    if is_extractive(name) or is_extractive(str(folder / ALL)):
        raise UsageError(
            f"{name} holds a re-ranker, which puts passages in order and writes no answers: ask a reader that takes it "
            f"(shoulders train reader evidence.reranker={name}), or measure the spans that it finds (shoulders "
            f"evaluate RERANKER evidence.index=FOLDER)"
        )
    kept = folder / RECIPE
    if kept.exists() and read_json(kept).get("kind") == RETRIEVER:
        raise UsageError(
            f"{name} holds a retriever, which finds passages and writes no answers: encode an index with it (shoulders "
            f"encode INDEX --retriever {folder / 'best'}), and ask a reader (evidence.retriever=dense)"
        )
