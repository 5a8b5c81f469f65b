"""Closed-book question answering with SmolLM2-135M: one pass, two, and the ablations of table 6, on two cores.

The questions are yours: `suite.source=qa:PATH/NAME` (`shoulders.data.questions`). Layers and pretraining are values:
`scaffold.recursion.layers=1`, `scaffold.start=RUN` (a run of `text_recursion` of the same sizes).
"""

from dataclasses import replace

from shoulders.data.batching import Lengths
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evidence.choice import EvidenceChoice
from shoulders.recipes.recipe import Recipe, SuiteChoice
from shoulders.recipes.small import BACKBONE
from shoulders.scaffolds.recursion import RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.training.plan import TrainPlan


def closed_book() -> Recipe:
    """Prompt tuning, a single pass: p1 of textual recursion, and what recursion is compared with."""
    return Recipe(
        name="closed_book",
        about="prompt tuning of SmolLM2-135M on questions (suite.source=qa:PATH/NAME); also p1 of recursion",
        backbone=BACKBONE,
        scaffold=SoftPromptConfig(length=16),
        suite=SuiteChoice(source="qa:questions", lengths=Lengths(input=128, target=32)),
        training=TrainPlan(
            steps=300,
            batch_size=16,
            learning_rate=0.05,
            warmup=0.05,
            decay="linear",
            positions_at_once=1024,
            evaluate_every=100,
            save_every=100,
        ),
        development=EvaluationPlan(limit=200, longest=16),
        test=EvaluationPlan(split="test", limit=400, longest=16),
    )


def lm_connector_lm() -> Recipe:
    """Two passes; starts exactly at the single pass (a gated residual), so that it needs no pretraining."""
    return _recursion("lm_connector_lm", "two passes with a Connector between them", RecursionShape(residual=True))


def connector_lm() -> Recipe:
    """The strongest ablation with one pass: the same trained parameters before it (table 6)."""
    shape = RecursionShape(passes=1, before=True, residual=True)
    return _recursion("connector_lm", "one pass with a Connector before it", shape)


def lm_connector() -> Recipe:
    """One pass with the same trained parameters after it (table 6)."""
    shape = RecursionShape(passes=1, after=True, residual=True)
    return _recursion("lm_connector", "one pass with a Connector after it", shape)


def textual_recursion() -> Recipe:
    """p2 of textual recursion: prompt tuning with 16 sampled candidates after the question (table 5)."""
    base = closed_book()
    return replace(
        base,
        name="textual_recursion",
        about="textual recursion of SmolLM2-135M: prompt tuning over candidates sampled under evidence.scaffold=RUN",
        evidence=EvidenceChoice(kind="candidates", store="runs/candidates.sqlite"),
        suite=replace(base.suite, lengths=Lengths(input=384, target=32)),
    )


def _recursion(name: str, what: str, shape: RecursionShape) -> Recipe:
    base = closed_book()
    return replace(
        base,
        name=name,
        about=f"{what}, around SmolLM2-135M on closed-book questions (suite.source=qa:PATH/NAME)",
        scaffold=RecursionConfig(recursion=shape),
        training=replace(
            base.training, learning_rate=1e-3, base_learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.1
        ),
    )
