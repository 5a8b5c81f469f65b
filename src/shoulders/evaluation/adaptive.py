"""Scores of a cascade, put together from those of its stages: each measured example has the answer it stopped at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from shoulders.adaptive import calibration
from shoulders.adaptive.calibration import Point, average_passes, stages_of
from shoulders.adaptive.stages import RULES
from shoulders.evaluation.protocol import Scores


@final
class StagedScores:
    """What every stage made of the same examples, and what any thresholds make of that.

    An answer does not depend on what else was asked, so a cascade's answers are among its stages'.

    Args:
        stages: scores of each, of one plan.
        passes: of each.
        rule: what confidence is.
    """

    def __init__(self, stages: Sequence[Scores], passes: Sequence[int], rule: str) -> None:
        self.stages, self.passes = stages, passes
        self.confidences: Float[np.ndarray, "S N"] = np.array(
            [[RULES[rule](one.answer) for row in scores.wordings for one in row.predictions] for scores in stages]
        )

    def calibrated(self, budget: float) -> Point:
        """The best thresholds within the budget."""
        return calibration.calibrated(self.confidences, self.passes, budget, self._average)

    def curve(self) -> list[Point]:
        """From the cheapest to the dearest, over all thresholds of these very examples."""
        return calibration.curve(self.confidences, self.passes, self._average)

    def scores(self, stage_of: Sequence[int]) -> Scores:
        """As if each example had been asked at its stage. Counts as cut what any stage had to cut."""
        places: Iterator[int] = iter(stage_of)
        wordings = [
            replace(
                row,
                predictions=[
                    self.stages[next(places)].wordings[number].predictions[one] for one in range(len(row.predictions))
                ],
            )
            for number, row in enumerate(self.stages[0].wordings)
        ]
        return replace(self.stages[0], wordings=wordings, truncated=max(one.truncated for one in self.stages))

    def stops(self, thresholds: Sequence[float]) -> Int[np.ndarray, "N"]:
        """The stage at which each example stops."""
        return stages_of(self.confidences, thresholds)

    def spent(self, thresholds: Sequence[float]) -> Mapping[str, Any]:
        """Average passes, the share of examples that stopped at each stage, and the curve, as JSON."""
        stops = self.stops(thresholds)
        return {
            "average": average_passes(stops, self.passes),
            "stages": [
                {"passes": passes, "share": float((stops == number).mean())}
                for number, passes in enumerate(self.passes)
            ],
            "curve": [{"passes": point.passes, "score": point.score} for point in self.curve()],
        }

    def _average(self, stage_of: Sequence[int]) -> float:
        return self.scores(stage_of).average
