"""The paper's claims that were tried here, in one place.

    python -m experiments.claims [--readme]

Writes `experiments/claims.json` (name -> value, low and high of its 95% interval, seeds, the paper's value, sources,
verdict) and the page of the documentation, from the recorded results alone; `--readme` prints the rows of the README.

A claim is a value with a bound (`least`). It holds if the whole interval is above the bound, fails if all of it is
below, and is open otherwise; a value without an interval decides by itself. Claims whose results are not there yet are
left out, so that a new experiment adds its row by being recorded.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shoulders.data.matching import NOT_FOUND
from shoulders.errors import SourceNotFound
from shoulders.evaluation.metrics import ACCURACY
from shoulders.evaluation.recall import read_samples
from shoulders.evaluation.report import markdown_rows
from shoulders.evaluation.results import Result, read_result
from shoulders.evaluation.statistics import Average, Interval, Measured, average, difference_interval
from shoulders.store.files import atomic_file, read_json, write_json

HERE = Path(__file__).parent
NUMBERS, PAGE = HERE / "claims.json", HERE.parent / "docs" / "claims.md"
RECORDS = "https://github.com/shoulders-lm/shoulders/tree/main/experiments"
HOLDS, FAILS, OPEN = "holds", "fails", "open"
NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value.

    Attributes:
        low, high: of its 95% interval; None where single examples were not recorded.
        seeds: of the method that the claim is about; `other_seeds` of what it is compared with.
        source: files that it was made from, relative to the folder of the experiments.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    other_seeds: tuple[int, ...] = ()
    source: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and how it is estimated.

    Attributes:
        says: the claim in words; the value is in points (percent) unless the words name another unit.
        where: place in the paper; empty for a claim that is ours.
        paper: the paper's value; None if it gives none.
        estimate: returns the value here.
        least: bound of the value, above which the claim holds.
        unit: "points", or "times" or "distance".
        readme: whether the README names it.
    """

    name: str
    says: str
    where: str
    paper: float | None
    estimate: Callable[[], Estimate]
    least: float = 0.0
    unit: str = "points"
    readme: bool = False


def verdict(claim: Claim, found: Estimate) -> str:
    """Return whether a claim holds, fails, or is open."""
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return HOLDS if low > claim.least else FAILS if high < claim.least else OPEN


def _results(folder: str, *names: str) -> list[Result]:
    return [read_result(HERE / folder / "results" / f"{name}.json") for name in names]


def _seeds(results: Sequence[Result]) -> tuple[int, ...]:
    return tuple(sorted(result.content["recipe"]["training"]["seed"] for result in results))


def _of(
    found: Interval, results: Sequence[Result], others: Sequence[Result], folder: str, others_in: str = ""
) -> Estimate:
    places = [(folder, results), (others_in or folder, others)]
    source = tuple(f"{place}/results/{result.name}.json" for place, some in places for result in some)
    return Estimate(found.value, found.low, found.high, _seeds(results), _seeds(others), source)


def difference(
    folder: str, names: Sequence[str], others: Sequence[str], metric: str = "", others_in: str = ""
) -> Estimate:
    """Return the average score of some runs (the seeds of a method) minus that of others, paired over examples.

    Args:
        folder: experiment of the runs, and of the others unless `others_in` names another one of the same examples.
    """
    ours, theirs = _results(folder, *names), _results(others_in or folder, *others)
    if len({result.content.get("examples_hash") for result in (*ours, *theirs)}) > 1:
        raise ValueError(f"{folder}: {names} and {others} were measured on different examples")
    return _of(_average(ours, metric).over(_average(theirs, metric)), ours, theirs, folder, others_in)


def _average(results: Sequence[Result], metric: str) -> Average:
    return average([(result.measured_by(metric) or []) if metric else result.measured for result in results])


def at_input(folder: str, name: str, other: str) -> Estimate:
    """Return the recall at the language model's input of one run minus that of another.

    Results of before it was recorded for each example have no interval.
    """
    runs = _results(folder, name, other)
    found = [run.content["retrieval"] for run in runs]
    rows = [[[float(place != NOT_FOUND)] for place in one.get("first_at_input", ())] for one in found]
    if all(rows):
        ours, theirs = ([Measured("questions", "", ACCURACY, some)] for some in rows)
        return _of(difference_interval(ours, theirs), runs[:1], runs[1:], folder)
    value = found[0]["recall_at_input"] - found[1]["recall_at_input"]
    return replace(_of(Interval(value, 0.0, 0.0), runs[:1], runs[1:], folder), low=None, high=None)


def reordered(files: Mapping[int, str], questions: str) -> Estimate:
    """Return what re-rankers (files by seed) add to recall at the language model's input.

    The interval is the mean of theirs, which is not narrower than that of the mean.
    """
    found = [read_json(HERE / file)["sets"][questions]["at_input"] for file in files.values()]
    low, high = np.mean([one["interval"] for one in found], axis=0)
    return Estimate(np.mean([one["gain"] for one in found]).item(), low, high, (*files,), (), (*files.values(),))


def beyond_one_pass(name: str, other: str) -> Estimate:
    """Return the EM of a run on the questions that no sample of a single pass answers, minus that of another run."""
    folder = "007-recursion"
    runs = _results(folder, name, other)
    samples = read_samples(HERE / folder / "results" / "samples.json", "samples")
    assert samples is not None
    hopeless = [samples.unanswered(run) for run in runs]
    rows = [_only(run, keep) for run, keep in zip(runs, hopeless, strict=True)]
    found = _of(average([rows[0]]).over(average([rows[1]])), runs[:1], runs[1:], folder)
    return replace(found, source=(*found.source, f"{folder}/results/samples.json"))


def _only(run: Result, keep: Any) -> list[Any]:
    return [
        replace(row, rows=[values for values, kept in zip(row.rows, some, strict=True) if kept])
        for row, some in zip(run.measured, keep, strict=True)
    ]


def sampled_recall(count: int) -> Estimate:
    """Return the share of questions with a right answer among samples, minus that of the greedy answer, paired."""
    folder = "007-recursion"
    content = read_json(HERE / folder / "results" / "samples.json")
    (run,) = _results(folder, "prompt-tuned-s0")
    first = [np.asarray(row["first"]) for row in content["wordings"]]
    drawn = [
        replace(row, rows=[[float(0 <= at < count)] for at in some])
        for row, some in zip(run.measured, first, strict=True)
    ]
    found = _of(average([drawn]).over(average([run.measured])), [run], [], folder)
    return replace(found, source=(*found.source, f"{folder}/results/samples.json"))


def perplexity_ratio(file: str) -> Estimate:
    """Return the perplexity of other text after training, divided by that before; not recorded by sequence."""
    content = read_json(HERE / file)
    ratio = content["ratios"]["on"] if "ratios" in content else content["ratio"]  # older files: of what cannot come off
    return Estimate(ratio, None, None, (content["recipe"]["training"]["seed"],), (), (file,))


def prompt_distances(wide: str, narrow: str) -> Estimate:
    """Return the mean cosine distance of generated prompts in one relation, minus that in another."""
    file = "012-suite-rivals/prompts/prompts.json"
    content = read_json(HERE / file)
    apart = content["distances"]
    value = apart[wide]["mean"] - apart[narrow]["mean"]
    return Estimate(value, None, None, (content["recipe"]["training"]["seed"],), (), (file,))


SUITE, SEVERAL, ONE_SET = "012-suite-rivals", "003-length-suite", "013-single-task"
BUNDLED, READER, PASSES = "004-length-bundled", "009-reader", "007-recursion"
IDPT = ("idpt-minilm-400-s0", "idpt-minilm-400-s1")
PROMPT = ("prompt-tuning-400-s0", "prompt-tuning-400-s1")
SUFFIX, PREFIX = ("suffix-bm25-s0",), ("prefix-bm25-s0",)
TUNED = ("prompt-tuned-s0",)
# The deep scaffolds' grid is the suite's again, and is compared with the suite's runs.
DEEP, SHARED = "014-deep-scaffolds", ("low-rank-400-s0", "low-rank-400-s1", "low-rank-400-s2")
BEST = ("low-rank-input-400-s0", "low-rank-input-400-s1", "low-rank-input-400-s2")
OWN_PASS = ("low-rank-input-self-400-s0", "low-rank-input-self-fp32-400-s1")
LORA, FULL = ("lora-400-s0",), ("full-400-s0",)
# LoRA of as many trained parameters as the gated updates.
EQUAL_LORA = ("lora-38-400-s0", "lora-38-400-s1", "lora-38-400-s2")
GATED = "Low-rank updates weighted for each input (frozen weights)"
QUANTIZED, REORDERED = "017-nf4", "019-reranked-reader/short"
CORRECTING = {0: f"{REORDERED}/order.json", 1: f"{REORDERED}/order-s1.json"}
# Experiments to come, and the names of their results.
DEEP_READER, RECURSION = "015-deep-reader", "016-recursion"

CLAIMS = (
    Claim(
        "input_prompt_minus_prompt_tuning",
        "ID-PT over prompt tuning, twelve data sets",
        "table 9, length 400",
        1.6,
        partial(difference, SUITE, IDPT, PROMPT),
        readme=True,
    ),
    Claim(
        "input_prompt_minus_prompt_tuning_ten_sets",
        "ID-PT over prompt tuning, ten data sets, shorter training",
        "table 9, length 400",
        1.6,
        partial(
            difference,
            SEVERAL,
            ("idpt-300-s0", "idpt-300-s1"),
            ("prompt-tuning-300-s0", "prompt-tuning-300-s1"),
        ),
    ),
    Claim(
        "input_prompt_minus_prompt_tuning_bundled",
        "ID-PT over prompt tuning, bundled suite of short facts",
        "table 9, length 400",
        1.6,
        partial(difference, BUNDLED, ("idpt-160-s0",), ("prompt-tuning-160-s0",)),
    ),
    Claim(
        "input_prompt_minus_prompt_tuning_one_set",
        "ID-PT over prompt tuning within one data set (the paper: a hint)",
        "section 2.3",
        None,
        partial(difference, ONE_SET, ("idpt-minilm-150-s0",), ("prompt-tuning-150-s0",)),
        readme=True,
    ),
    Claim(
        "input_prompt_minus_full",
        "ID-PT level with full fine-tuning (at most 1 point behind)",
        "table 1 (T0++ has other weights)",
        0.3,
        partial(difference, SUITE, IDPT, ("full-400-s0",)),
        least=-1.0,
        readme=True,
    ),
    Claim(
        "input_prompt_minus_lora",
        "ID-PT level with LoRA (at most 1 point behind)",
        "",
        None,
        partial(difference, SUITE, IDPT, ("lora-400-s0",)),
        least=-1.0,
        readme=True,
    ),
    Claim(
        "prompt_tuning_minus_bare",
        "Prompt tuning over the model alone, twelve data sets",
        "section 1",
        None,
        partial(difference, SUITE, PROMPT, ("bare-s0",)),
    ),
    Claim(
        "longer_input_prompt",
        "A generated prompt of 48 vectors over one of 16 (the paper: 400 over 100)",
        "table 9",
        1.1,
        partial(difference, SUITE, ("idpt-minilm-48-400-s0",), IDPT[:1]),
    ),
    Claim(
        "prompts_apart_between_data_sets",
        "Cosine distance of generated prompts: of different data sets over of different templates",
        "table 8",
        0.091,
        partial(prompt_distances, "different data sets", "same data set, different templates"),
        unit="distance",
    ),
    Claim(
        "prompts_apart_between_templates",
        "Cosine distance of generated prompts: of different templates over of one template",
        "table 8",
        0.041,
        partial(prompt_distances, "same data set, different templates", "same data set, same template"),
        unit="distance",
    ),
    Claim(
        "full_fine_tuning_forgets",
        "Full fine-tuning forgets: perplexity of other text after it, divided by that before",
        "section 1",
        None,
        partial(perplexity_ratio, "012-suite-rivals/results/forget-full-400-s0.json"),
        least=1.0,
        unit="times",
        readme=True,
    ),
    Claim(
        "frozen_reader_minus_full_reader",
        "A frozen reader (our prompt after the passages) level with a fully fine-tuned one (at most 1 point behind)",
        "table 3 (17B over FiD)",
        0.2,
        partial(difference, READER, SUFFIX, ("full-bm25-s0",)),
        least=-1.0,
        readme=True,
    ),
    Claim(
        "frozen_reader_minus_lora_reader",
        "A frozen reader (our prompt after the passages) level with LoRA (at most 1 point behind)",
        "",
        None,
        partial(difference, READER, SUFFIX, ("lora-bm25-s0",)),
        least=-1.0,
    ),
    Claim(
        "prefix_reader_minus_full_reader",
        "A frozen reader (the paper's prompt before the passages) level with a fully fine-tuned one "
        "(at most 1 point behind)",
        "table 3 (17B over FiD)",
        0.2,
        partial(difference, READER, PREFIX, ("full-bm25-s0",)),
        least=-1.0,
    ),
    Claim(
        "reader_prompt_minus_bare",
        "A trained prompt before the passages over the model alone",
        "section 3",
        None,
        partial(difference, READER, PREFIX, ("bare-bm25-s0",)),
    ),
    Claim(
        "better_retriever_recall_at_input",
        "Recall at the LM's input: hybrid retrieval over BM25 (its encoder has seen the data set)",
        "table 2",
        4.2,
        partial(at_input, READER, "suffix-bm25-on-hybrid", "suffix-bm25-s0"),
    ),
    Claim(
        "better_retriever_em",
        "EM of the same reader: hybrid retrieval over BM25 (its encoder has seen the data set)",
        "table 2",
        2.9,
        partial(difference, READER, ("suffix-bm25-on-hybrid",), SUFFIX),
        readme=True,
    ),
    Claim(
        "reranker_recall_at_input",
        "Recall at the LM's input: a re-ranker that starts at BM25's order over that order, by 2 points (NQ)",
        "table 2",
        3.2,
        partial(reordered, CORRECTING, "sparse nq.test"),
        least=2.0,
        readme=True,
    ),
    Claim(
        "reranker_recall_at_input_squad",
        "Recall at the LM's input: a re-ranker that starts at BM25's order over that order, by 2 points (SQuAD)",
        "table 2",
        None,
        partial(reordered, CORRECTING, "sparse squad.validation"),
        least=2.0,
    ),
    Claim(
        "paper_reranker_recall_at_input",
        "Recall at the LM's input: the paper's re-ranker, trained for minutes, over the retriever's order",
        "table 2",
        3.2,
        partial(at_input, READER, "suffix-bm25-on-reranked", "suffix-bm25-s0"),
    ),
    Claim(
        "paper_reranker_em",
        "EM of the same reader: the paper's re-ranker, trained for minutes, over the retriever's order",
        "table 2",
        2.1,
        partial(difference, READER, ("suffix-bm25-on-reranked",), SUFFIX),
        readme=True,
    ),
    Claim(
        "reranker_and_retriever_em",
        "EM of the same reader: both scores together over the retriever's",
        "",
        None,
        partial(difference, READER, ("suffix-bm25-on-both",), SUFFIX),
    ),
    Claim(
        "sampled_recall_minus_greedy",
        "A right answer among 16 samples of one pass, over the greedy answer",
        "table 5",
        13.8,
        partial(sampled_recall, 16),
    ),
    Claim(
        "textual_minus_prompt_tuning",
        "Textual recursion over one pass",
        "table 4 (test)",
        1.8,
        partial(difference, PASSES, ("textual-8-s0",), TUNED),
        readme=True,
    ),
    Claim(
        "two_passes_minus_prompt_tuning",
        "Neural recursion over a prompt-tuned single pass",
        "table 6",
        3.7,
        partial(difference, PASSES, ("lm-connector-lm-s0",), TUNED),
    ),
    Claim(
        "two_passes_minus_one",
        "Neural recursion over one pass of as many trained parameters",
        "table 6",
        2.2,
        partial(difference, PASSES, ("lm-connector-lm-s0",), ("connector-lm-s0",)),
        readme=True,
    ),
    Claim(
        "connector_before_minus_prompt_tuning",
        "One pass with a Connector before it over prompt tuning",
        "table 6",
        1.5,
        partial(difference, PASSES, ("connector-lm-s0",), TUNED),
    ),
    Claim(
        "connector_after_minus_prompt_tuning",
        "One pass with a Connector after it over prompt tuning",
        "table 6",
        0.2,
        partial(difference, PASSES, ("lm-connector-s0",), TUNED),
    ),
    Claim(
        "neural_minus_textual_beyond_one_pass",
        "Where no sample of one pass is right: neural recursion over textual",
        "section 4.2",
        8.2,
        partial(beyond_one_pass, "lm-connector-lm-s0", "textual-8-s0"),
    ),
    Claim(
        "neural_minus_one_pass_beyond_it",
        "Where no sample of one pass is right: neural recursion over one pass with a Connector",
        "section 4.2",
        None,
        partial(beyond_one_pass, "lm-connector-lm-s0", "connector-lm-s0"),
    ),
    Claim(
        "adaptive_minus_prompt_tuning",
        "As many passes as a question needs over one pass",
        "section 1",
        None,
        partial(difference, PASSES, ("adaptive",), TUNED),
    ),
    *(
        Claim(
            name,
            f"{GATED} {says}",
            where,
            paper,
            partial(difference, DEEP, BEST, others, "", place),
            least,
            readme=True,
        )
        for name, says, where, paper, others, place, least in (
            (
                "input_dependent_minus_lora",
                "level with LoRA of their size (at most 1 point behind)",
                "",
                None,
                EQUAL_LORA,
                DEEP,
                -1.0,
            ),
            (
                "input_dependent_minus_small_lora",
                "level with LoRA of rank 16 (at most 1 point behind)",
                "",
                None,
                LORA,
                SUITE,
                -1.0,
            ),
            ("input_dependent_minus_full", "over full fine-tuning", "table 1", 0.3, FULL, SUITE, 0.0),
            ("input_dependent_minus_input_prompt", "over ID-PT by 5 points", "", None, IDPT, SUITE, 5.0),
        )
    ),
    Claim(
        "own_first_pass_minus_lora",
        "Low-rank updates weighted by the model's own first pass over one pass of as many trained parameters (LoRA)",
        "section 4.2 (vectors from one pass into the next)",
        None,
        partial(difference, DEEP, OWN_PASS, EQUAL_LORA),
        readme=True,
    ),
    Claim(
        "nf4_quality_drop",
        "What prompt tuning loses around nf4 weights: bf16 over nf4",
        "",
        None,
        partial(difference, QUANTIZED, ("bf16-100-s0",), ("nf4-100-s0",)),
    ),
    # Recorded when their experiments are.
    Claim(
        "reranker_em",
        "EM of the same reader: a re-ranker that starts at BM25's order over that order",
        "table 2",
        2.1,
        partial(difference, REORDERED, ("bm25-reranked-s0",), ("bm25-reranked-s0-on-bm25",)),
    ),
    Claim(
        "input_dependent_minus_shared",
        f"{GATED} over the same updates for all inputs by 1.5",
        "table 9",
        None,
        partial(difference, DEEP, BEST, SHARED),
        least=1.5,
        readme=True,
    ),
    Claim(
        "deep_reader_minus_lora_reader",
        "A frozen reader with trained keys and values level with LoRA",
        "table 3",
        None,
        partial(difference, DEEP_READER, ("deep-s0",), ("lora-s0",)),
        least=-1.0,
    ),
    Claim(
        "textual_minus_majority",
        "Textual recursion over the majority of the same samples",
        "section 4.1",
        None,
        partial(difference, RECURSION, ("textual-s0", "textual-s1"), ("majority-s0", "majority-s1")),
    ),
)


def found_claims() -> dict[str, tuple[Claim, Estimate]]:
    """Return the claims whose results are recorded, by name."""
    found: dict[str, tuple[Claim, Estimate]] = {}
    for claim in CLAIMS:
        try:
            found[claim.name] = claim, claim.estimate()
        except SourceNotFound:
            continue
    return found


def as_json(found: Mapping[str, tuple[Claim, Estimate]]) -> dict[str, Any]:
    """Return the content of the file of claims."""
    return {
        name: {
            "says": claim.says,
            "value": round(one.value, 4),
            "low": one.low and round(one.low, 4),
            "high": one.high and round(one.high, 4),
            "least": claim.least,
            "unit": claim.unit,
            "verdict": verdict(claim, one),
            "paper": claim.paper,
            "where": claim.where,
            "seeds": list(one.seeds),
            "other_seeds": list(one.other_seeds),
            "source": list(one.source),
        }
        for name, (claim, one) in found.items()
    }


HEADER = ("claim", "here (95% interval)", "the paper", "where", "verdict", "seeds", "source")
LEFT = (True, False, False, True, True, False, True)


def table(found: Mapping[str, tuple[Claim, Estimate]], columns: int = len(HEADER)) -> str:
    """Return a Markdown table of claims, of the first columns."""
    rows = [_row(claim, one)[:columns] for claim, one in found.values()]
    return markdown_rows(HEADER[:columns], rows, LEFT[:columns])


def _row(claim: Claim, one: Estimate) -> list[str]:
    folder = one.source[0].split("/")[0]
    decided = verdict(claim, one)
    return [
        claim.says,
        _number(one.value, claim.unit) + ("" if one.low is None else f" ({one.low:+.1f} to {one.high:+.1f})"),
        NONE if claim.paper is None else _number(claim.paper, claim.unit),
        claim.where or "ours",
        f"**{decided}**" if decided == FAILS else decided,
        str(len(one.seeds)),
        f"[{folder[:3]}]({RECORDS}/{folder})",
    ]


def _number(value: float, unit: str) -> str:
    return {"points": f"{value:+.1f}", "times": f"{value:.2f} times", "distance": f"{value:+.3f}"}[unit]


def page(found: Mapping[str, tuple[Claim, Estimate]]) -> str:
    """Return the page of the documentation."""
    count = {one: sum(verdict(*pair) == one for pair in found.values()) for one in (HOLDS, FAILS, OPEN)}
    return f"""# The paper's claims, tried here

{INTRODUCTION}

{count[HOLDS]} of {len(found)} hold, {count[FAILS]} fail, {count[OPEN]} are open.

{table(found)}

{READING}
"""


INTRODUCTION = """\
What the paper says of models of 7B to 17B parameters, tried on SmolLM2-135M with a few thousand training examples; also
what failed. "A over B" is the score of A minus that of B. A claim *holds* if the whole 95% interval is above its bound,
*fails* if all of it is below, and is *open* otherwise. The bound is 0 (for a ratio, 1) unless the claim names another;
"at most 1 point behind" is a bound of -1. A value without an interval is compared with the bound by itself."""

READING = """\
Differences are in points (percent), paired over the same examples; intervals are bootstraps over examples and do not
include the variance between seeds. `seeds` is the number of seeds of the method named first; the other may have fewer
(`other_seeds` in the file). A value without an interval was not recorded by example. `make claims` makes this page and
[claims.json](https://github.com/shoulders-lm/shoulders/blob/main/experiments/claims.json) from the recorded results;
commands and verdicts in words are in the
[experiments](https://github.com/shoulders-lm/shoulders/tree/main/experiments). Not tried: models of billions of
parameters, training on millions of examples, and the paper's own backbones, which are not public."""


def main() -> None:
    """Write the numbers and the page, or print the rows of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="print the rows of the README instead")
    found = found_claims()
    if parser.parse_args().readme:
        print(table({name: pair for name, pair in found.items() if pair[0].readme}, columns=5))
        return
    write_json(NUMBERS, as_json(found))
    with atomic_file(PAGE) as part:
        part.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
