"""A sequence-to-sequence model by a recipe's test plan: the paper's column of T0++ (table 1), FLAN-T5 beside it."""

from typing import Any

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.errors import UsageError
from shoulders.evaluation.encoder_decoder import EncoderDecoderAnswers
from shoulders.evaluation.protocol import OnDone, Scores, evaluate_answers
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evaluation.results import scores_as_json
from shoulders.recipes.jobs import task_parts
from shoulders.recipes.recipe import Recipe
from shoulders.scaffolds.base import Bare


def measure_encoder_decoder(recipe: Recipe, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Scores of the recipe's sequence-to-sequence model on its suite, and all that `results.json` holds of them.

    Inputs are cut at `suite.lengths.input` tokens (T0: 1,024).

    Raises:
        UsageError: the recipe is one of text, or puts evidence before questions.
        SourceNotFound, HubUnreachable: as `FrozenEncoderDecoder.load`.
    """
    backbone, suite = recipe.backbone, recipe.suite
    for key, value in {"text.source": recipe.text.source, "evidence.kind": recipe.evidence.kind}.items():
        if value:
            raise UsageError(
                f"{key}={value} is for causal models, and {backbone.name} has an encoder and a decoder: leave it empty"
            )
    tasks = task_parts(recipe).tested
    model = FrozenEncoderDecoder.load(
        backbone.name, dtype=backbone.dtype, device=backbone.device, input_end=backbone.input_end
    )
    scores = evaluate_answers(
        tasks,
        lambda how: EncoderDecoderAnswers(model, suite.lengths.input, how),
        recipe.test,
        without=suite.without(tasks),
        skip=suite.skip,
        on_done=on_done,
    )
    about = {"retrieval": None, "trained": 0, "scaffold": scaffold_measured(Bare(), None), "evidence": None}
    return scores, {**scores_as_json(scores), **about, **provenance(recipe.as_json(), model)}
