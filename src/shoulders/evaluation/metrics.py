"""Metrics: pure functions of a prediction and its references, whose sums over examples give a score.

A metric measures an example as a few numbers; the score is a function of their sums. So accuracy, token F1 and corpus
BLEU are handled alike, and a bootstrap resamples examples without measuring them again. Scores are in percent.
"""

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shoulders.errors import UnknownName
from shoulders.plugins import Registry

TRIVIA_PUNCTUATION = frozenset(string.punctuation + "\u2018\u2019\u00b4`")

Measure = Callable[[str, Sequence[str]], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: of the metric.
        measure: returns the numbers of a prediction, given its references.
        total: returns the score in percent, given the summed numbers and the number of examples.
    """

    name: str
    measure: Measure
    total: Callable[[Sequence[float], int], float]


def normalise(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and articles.

    Source: SQuAD v1.1 evaluate-v1.1.py; DPR; FiD.
    """
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def normalise_trivia(text: str) -> str:
    """Return a text in lower case, with spaces for punctuation and quotes, without articles.

    Source: triviaqa_evaluation.py.
    """
    kept = "".join(" " if letter in TRIVIA_PUNCTUATION else letter for letter in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, golds: Sequence[str], normal: Callable[[str], str] = normalise) -> float:
    """Return 1.0 if any gold answer equals the prediction, both normalised, else 0.0.

    A text of articles and punctuation alone is compared without normalisation; in the original script all such texts
    are equal to each other and to the empty text. An empty prediction is never right.

    Source: SQuAD v1.1 evaluate-v1.1.py.
    """
    _need(golds)
    found = _compared(prediction, normal)
    return float(any(bool(found) and found == _compared(gold, normal) for gold in golds))


def token_f1(prediction: str, golds: Sequence[str], normal: Callable[[str], str] = normalise) -> float:
    """Return the highest token F1 over the gold answers. Source: SQuAD v1.1 evaluate-v1.1.py."""
    _need(golds)
    return max(_f1(_compared(prediction, normal).split(), _compared(gold, normal).split()) for gold in golds)


def _compared(text: str, normal: Callable[[str], str]) -> str:
    return normal(text) or " ".join(text.lower().split())


def _f1(found: list[str], wanted: list[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """Return the highest ROUGE-L F over the references, stemmed. Source: Lin 2004; google-research `rouge_score`.

    The tokenizer of the library knows a-z and 0-9 only, as everywhere in the literature: text in another script scores
    0 even if it equals the reference.
    """
    _need(golds)
    scorer = _rouge()
    return max(scorer.score(gold, prediction)["rougeL"].fmeasure for gold in golds)


def bleu_statistics(prediction: str, golds: Sequence[str]) -> tuple[float, ...]:
    """Return matches and totals of 1- to 4-grams, and both lengths, which corpus BLEU sums. Source: sacrebleu."""
    _need(golds)
    found = _bleu().sentence_score(prediction, list(golds))
    return (*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len))


def _bleu_total(sums: Sequence[float], _: int) -> float:
    from sacrebleu.metrics.bleu import BLEU

    counts, totals = [int(x) for x in sums[:4]], [int(x) for x in sums[4:8]]
    return BLEU.compute_bleu(counts, totals, int(sums[8]), int(sums[9]), smooth_method="exp").score


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # It warns that sentence scores need another order; only the counts are used here.
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    return BLEU(effective_order=False, smooth_method="none")


def _need(golds: Sequence[str]) -> None:
    if not golds:
        raise ValueError("a metric needs at least one reference answer")


def _mean(function: Callable[[str, Sequence[str]], float], name: str) -> Metric:
    return Metric(name, lambda found, golds: (function(found, golds),), lambda sums, count: 100 * sums[0] / count)


ACCURACY = _mean(lambda found, golds: float(found == golds[0]), "accuracy")
EM = _mean(exact_match, "exact_match")
F1 = _mean(token_f1, "f1")
TRIVIA_EM = _mean(lambda found, golds: exact_match(found, golds, normalise_trivia), "triviaqa_exact_match")
TRIVIA_F1 = _mean(lambda found, golds: token_f1(found, golds, normalise_trivia), "triviaqa_f1")
ROUGE_L = _mean(rouge_l, "rouge_l")
BLEU_4 = Metric("bleu", bleu_statistics, _bleu_total)

# By PromptSource's names; the first metric of a tuple decides the score of a wording.
GENERATED: dict[str, tuple[Metric, ...]] = {
    "Squad": (F1, EM),
    "Trivia QA": (TRIVIA_EM, TRIVIA_F1),
    "Accuracy": (EM, F1),
    "ROUGE": (ROUGE_L,),
    "BLEU": (BLEU_4,),
}


# In PromptSource's list, or in the templates that it ships, but no metric here.
UNCOMPUTED = (
    "AUC",
    "COQA F1",
    "Edit Distance",
    "Mean Reciprocal Rank",
    "Mean Squared Error",
    "MultiRC",
    "Other",
    "Pearson Correlation",
    "Spearman Correlation",
)


def uncomputed(names: Sequence[str]) -> list[str]:
    """Return those of PromptSource's names that are no metric here; its files differ in upper and lower case."""
    known = {name.casefold() for name in UNCOMPUTED}
    return [name for name in names if name.casefold() in known and name not in METRICS]


def not_computed(names: Sequence[str]) -> str:
    """Return what a user is told of such names."""
    return (
        f"named by templates, but no metric here: {', '.join(names)}; where a template names no other, answers are "
        "scored by exact match and F1"
    )


def check_metrics(task: str, wording: str, names: Sequence[str]) -> None:
    """Raise `UnknownName` for a metric of a template that neither we, PromptSource nor another package know."""
    unknown = [name for name in names if name not in GENERATED and name not in METRICS and not uncomputed([name])]
    if unknown:
        known = {*GENERATED, *UNCOMPUTED, *METRICS.names()}
        raise UnknownName(f"metric (of template {wording!r} of task {task!r}) called", unknown[0], known)


def metrics_for(names: Sequence[str], *, choices: bool) -> tuple[Metric, ...]:
    """Return the metrics of a wording, given PromptSource's names; the deciding metric comes first.

    With answer choices it is the accuracy of rank classification. Otherwise metrics of other packages, named by their
    own names, come first, and ROUGE-L before BLEU (the paper reports one number a data set); exact match and F1 are the
    default where no name is that of a metric (`uncomputed`).
    """
    if choices:
        return (ACCURACY,)
    known = [name for name in GENERATED if name in names]
    found = [METRICS[name] for name in names if name not in GENERATED and name in METRICS]
    found += [metric for name in known for metric in GENERATED[name]]
    return tuple(dict.fromkeys(found)) or (EM, F1)


def _fault(name: str, found: Any) -> str:
    """Return what is wrong with a metric of another package."""
    if not isinstance(found, Metric):
        return "is no shoulders.evaluation.metrics.Metric"
    return "" if found.name == name else f"is a metric of the name {found.name!r}"


METRICS: Registry[Metric] = Registry(
    "shoulders.metrics",
    "metric",
    {
        "accuracy": "shoulders.evaluation.metrics:ACCURACY",
        "bleu": "shoulders.evaluation.metrics:BLEU_4",
        "exact_match": "shoulders.evaluation.metrics:EM",
        "f1": "shoulders.evaluation.metrics:F1",
        "rouge_l": "shoulders.evaluation.metrics:ROUGE_L",
        "triviaqa_exact_match": "shoulders.evaluation.metrics:TRIVIA_EM",
        "triviaqa_f1": "shoulders.evaluation.metrics:TRIVIA_F1",
    },
    _fault,
)
