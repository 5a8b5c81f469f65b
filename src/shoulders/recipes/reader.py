"""Open-domain question answering: SmolLM2-135M reads retrieved passages (the paper, section 3).

The questions and the index are yours: `suite.source=qa:PATH/NAME`, and `evidence.index=FOLDER` that `shoulders index`
wrote.
"""

from dataclasses import replace

from shoulders.data.batching import Lengths
from shoulders.evidence.choice import RETRIEVED, EvidenceChoice
from shoulders.recipes.closed_book import closed_book
from shoulders.recipes.recipe import Recipe


def reader() -> Recipe:
    """Prompt tuning on packed passages.

    The prompt stands before the passages, as in the paper; with `scaffold.placement=suffix` it follows them, so that
    they are read without gradients, which is cheaper.
    """
    base = closed_book()
    return replace(
        base,
        name="reader",
        about="prompt tuning of SmolLM2-135M as a reader of retrieved passages (evidence.index=FOLDER)",
        evidence=EvidenceChoice(kind=RETRIEVED),
        suite=replace(base.suite, lengths=Lengths(input=512, target=32)),
        training=replace(base.training, positions_at_once=1120),  # two rows
    )
