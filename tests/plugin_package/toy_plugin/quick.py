"""A recipe."""

from shoulders.runs.recipe import Recipe
from shoulders.training.plan import TrainPlan
from toy_plugin.shift import Shift


def toy_quick() -> Recipe:
    return Recipe(
        name="toy_quick",
        about="a shift of the embeddings in seven steps",
        scaffold=Shift.Config(spread=0.2),
        training=TrainPlan(steps=7),
    )
