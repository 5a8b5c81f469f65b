"""The paper's settings as recipes, each number with the section or table that it comes from.

J1-Large was never released: `shoulders plan` uses its shape, and training uses any Hugging Face model
(`backbone.name=...`).
"""

from dataclasses import replace

from shoulders.engine.batches import Lengths
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evidence.base import RETRIEVED
from shoulders.evidence.choice import EvidenceChoice
from shoulders.runs.recipe import BackboneChoice, Recipe, SuiteChoice
from shoulders.scaffolds.input_prompt import InputPromptConfig
from shoulders.scaffolds.recursion import RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.training.plan import TrainPlan

# The training sets of T0++ (Sanh et al. 2021) as bigscience/P3 names them, as far as table 7 of the paper lists them:
# 54 of the 55 that section 2.2 speaks of.
T0PP = (
    "adversarial_qa_dbert,adversarial_qa_dbidaf,adversarial_qa_droberta,ag_news,ai2_arc_ARC_Challenge,ai2_arc_ARC_Easy,"
    "amazon_polarity,app_reviews,cnn_dailymail_3.0.0,common_gen,cos_e_v1.11,cosmos_qa,dbpedia_14,dream,duorc_ParaphraseRC,"
    "duorc_SelfRC,gigaword,glue_mrpc,glue_qqp,hellaswag,imdb,kilt_tasks_hotpotqa,multi_news,openbookqa_main,"
    "paws_labeled_final,piqa,qasc,quail,quarel,quartz,quoref,race_high,race_middle,ropes,rotten_tomatoes,samsum,sciq,"
    "social_i_qa,squad_v2,super_glue_boolq,super_glue_copa,super_glue_multirc,super_glue_record,super_glue_wic,"
    "super_glue_wsc.fixed,trec,trivia_qa_unfiltered,web_questions,wiki_bio,wiki_hop_original,wiki_qa,wiqa,xsum,"
    "yelp_review_full"
)

# The paper's grids, by kind of scaffold: learning rates (2.2, 4.1, 4.2) and lengths of ID-PT's prompt (2.2). Each
# candidate is trained for 10% of the steps, and the best one on the development part goes on.
GRIDS = {
    "input_prompt": {
        "scaffold.length": ("100", "200", "300", "400"),
        "training.learning_rate": ("5e-5", "7.5e-5", "1.5e-4"),
    },
    "soft_prompt": {"training.learning_rate": ("3e-2", "1e-1", "3e-1", "5e-1")},
    "recursion": {"training.learning_rate": ("1e-5", "3e-5", "1e-4", "3e-4")},
}


def paper_prompt_tuning() -> Recipe:
    """Return prompt tuning on P3: the frozen baseline of figure 3 and table 9."""
    return Recipe(
        name="paper_prompt_tuning",
        about="prompt tuning on P3 as in the paper, section 2.2: the baseline of figure 3 and table 9",
        backbone=BackboneChoice(name="shape:j1-large", dtype="bfloat16"),
        scaffold=SoftPromptConfig(length=400),  # ~1.6M parameters (2.1)
        suite=SuiteChoice(source=f"p3:{T0PP}"),
        training=TrainPlan(
            steps=1_250_000,  # 125K steps are 10% of T0++'s training at batch 32 (2.2)
            batch_size=32,
            learning_rate=0.3,  # of the grid {3e-2, 1e-1, 3e-1, 5e-1} (4.1); Lester et al. 2021
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=0.0,
            warmup=0.005,  # 4.1
            evaluate_every=12_500,
            save_every=12_500,
            positions_at_once=8192,
        ),
        test=EvaluationPlan(split="test", longest=256),
    )


def paper_idpt() -> Recipe:
    """Return ID-PT on P3: figure 2, table 1, figure 3."""
    base = paper_prompt_tuning()
    return replace(
        base,
        name="paper_idpt",
        about="input-dependent prompt tuning (ID-PT) on P3 as in the paper, section 2: figure 2, table 1, figure 3",
        scaffold=InputPromptConfig(
            length=400,  # the best of {100, 200, 300, 400} (2.3, table 9)
            encoder="google-t5/t5-base",
            encoder_length=430,  # 330K parameters at width 768 (2.1)
            layers=2,
        ),
        training=replace(
            base.training,
            learning_rate=7.5e-5,  # of the grid {5e-5, 7.5e-5, 1.5e-4} (2.2)
            betas=(0.9, 0.95),
            weight_decay=0.1,
        ),
    )


def paper_closed_book() -> Recipe:
    """Return prompt tuning on closed-book NQ: the single pass of table 4 and figure 6, table 5's first prompt."""
    base = paper_prompt_tuning()
    return replace(
        base,
        name="paper_closed_book",
        about="prompt tuning on closed-book NQ as in the paper, section 4.1: the single pass of tables 4 and 5",
        scaffold=SoftPromptConfig(),  # 4.1 gives no length; Lester et al. 2021: 100
        suite=SuiteChoice(source="hub:nq_open@templates.yaml"),
        training=replace(base.training, steps=100_000),  # where it has converged (figure 6)
    )


def paper_reader() -> Recipe:
    """Return prompt tuning on packed passages of Natural Questions: the frozen reader of tables 2 and 3.

    The passages come in the order of BM25; the paper's are those of DPR, or of Spider and BM25, re-ranked.
    """
    base = paper_closed_book()
    return replace(
        base,
        name="paper_reader",
        about="the frozen reader of NQ as in the paper, section 3.1, on passages found by BM25 (evidence.index=FOLDER)",
        # The context of J1-Large, less prompt and answer; about 17 of 100 passages fit (table 2).
        suite=replace(base.suite, lengths=Lengths(input=2048, target=32)),
        evidence=EvidenceChoice(kind=RETRIEVED, passages=100),
        training=replace(base.training, learning_rate=0.1),  # of the grid {1e-1, 5e-1}; batch size 32 (3.1)
        development=EvaluationPlan(longest=32),
        test=EvaluationPlan(split="test", longest=32),
    )


def paper_textual_recursion() -> Recipe:
    """Return textual recursion (its second prompt, p2) on closed-book Natural Questions: tables 4 and 5, figure 5b."""
    return replace(
        paper_closed_book(),
        name="paper_textual_recursion",
        about="textual recursion on closed-book NQ as in the paper, section 4.1 (evidence.scaffold=RUN samples)",
        evidence=EvidenceChoice(kind="candidates", count=16, longest=32),  # the best of {1, 8, 16, 64} (table 5)
    )


def paper_recursion() -> Recipe:
    """Return LM-Connector-LM on closed-book Natural Questions: tables 4 and 6, figure 5c."""
    base = paper_closed_book()
    return replace(
        base,
        name="paper_recursion",
        about="LM-Connector-LM on closed-book NQ as in the paper, section 4.2: the last rows of tables 4 and 6",
        scaffold=RecursionConfig(recursion=RecursionShape(passes=2, layers=2)),
        training=replace(
            base.training,
            steps=100_000,  # table 4; 10,000 in table 6
            learning_rate=1e-4,  # of the grid {1e-5, 3e-5, 1e-4, 3e-4} (4.2)
            betas=(0.9, 0.95),
            weight_decay=0.1,
            decay="linear",  # 4.2
        ),
    )
