"""Perplexity per token and bits per byte of held-out text, and the report of runs on text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import text_batch
from shoulders.engine.inference import POSITIONS_AT_ONCE
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.evaluation import plots
from shoulders.evaluation.report import markdown, number
from shoulders.evaluation.results import RESULTS, Result
from shoulders.records import IGNORE
from shoulders.scaffolds.base import Scaffold
from shoulders.store.files import read_json, save_failed, write_json


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The perplexity of some sequences.

    Attributes:
        nats: negative log-likelihood, summed over all predicted tokens.
        tokens: number of predicted tokens: all but those of each sequence that were given.
        text_bytes: length of the text of these tokens in UTF-8.
    """

    nats: float
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / self.text_bytes

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as results store them."""
        return {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nats": self.nats,
            "tokens": self.tokens,
        }


@torch.no_grad()
def perplexity(lm: FrozenLM, scaffold: Scaffold, sequences: Sequence[Sequence[int]], given: int = 1) -> Perplexity:
    """Return the perplexity of packed sequences of one length, through a scaffold and the frozen model.

    Args:
        given: first tokens of each sequence, which are not predicted; an input-dependent prompt is written from them.
    """
    nats, size = 0.0, max(1, POSITIONS_AT_ONCE // (len(sequences[0]) + scaffold.length))
    for part in torch.tensor(sequences).split(size):
        batch = text_batch(part, lm)
        batch.labels[:, : given - 1] = IGNORE
        source = None
        if scaffold.encoder is not None:
            texts = [lm.text(ids) for ids in part[:, :given].tolist()]
            source = scaffold.encoder.source_tokens(texts, scaffold.source_room).to(lm.device)
        states = scaffold.states(lm, replace(batch.given, source=source))
        nats += lm.nll(states, batch.labels).sum().item()
    text_bytes = sum(len(lm.text(list(ids[given:])).encode()) for ids in sequences)
    return Perplexity(nats, sum(len(ids) - given for ids in sequences), text_bytes)


@dataclass(frozen=True, slots=True)
class TokenChanges:
    """What a second scaffold changes if it predicts only the tokens that the first is least sure of.

    Attributes:
        share: percentage of the tokens that the second predicts.
        fixed, broken: percentages of all tokens whose likeliest prediction becomes right, and wrong.
        nats: negative log-likelihood of a token, on average.
    """

    share: float
    fixed: float
    broken: float
    nats: float


@torch.no_grad()
def token_changes(
    lm: FrozenLM, first: Scaffold, second: Scaffold, sequences: Sequence[Sequence[int]], points: int = 10
) -> list[TokenChanges]:
    """Return what a second scaffold changes, for shares of the tokens from none to all; neither has an encoder.

    The first is sure of a token by the probability of its likeliest prediction. The second has read the whole text.
    """
    parts = [_token_scores(lm, first, second, sequence) for sequence in sequences]
    sure, right, other, nats, its = (torch.cat(some) for some in zip(*parts, strict=True))
    order = sure.argsort()
    found: list[TokenChanges] = []
    for point in range(points + 1):
        chosen = order[: len(order) * point // points]
        gained = other[chosen].int() - right[chosen].int()
        changed = nats.clone()
        changed[chosen] = its[chosen]
        shares = (100 * (one / len(order)) for one in (len(chosen), (gained > 0).sum(), (gained < 0).sum()))
        found.append(TokenChanges(*map(float, shares), nats=changed.mean().item()))
    return found


def _token_scores(lm: FrozenLM, first: Scaffold, second: Scaffold, sequence: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return for each token how sure the first is, whether both are right, and the nats of both."""
    batch = text_batch(torch.tensor([list(sequence)]), lm)
    one, two = (lm.logits(scaffold.states(lm, batch.given)[0]).float().log_softmax(-1) for scaffold in (first, second))
    labels = batch.labels[0]
    nats = [-logs.gather(1, labels[:, None])[:, 0] for logs in (one, two)]
    return (one.max(-1).values, one.argmax(-1) == labels, two.argmax(-1) == labels, *nats)


PAGE, NUMBERS = "text.md", "text.json"
NEEDED = {"perplexity", "bits_per_byte", "tokens", "recipe", "trained"}


def read_text_result(path: Path, name: str, log: Sequence[Mapping[str, Any]]) -> Result:
    """Return the results of a run on text (`results.json`), with its log.

    Raises:
        SourceNotFound, CorruptFile: the file is missing, or belongs to another kind of run.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.exists():
        raise SourceNotFound(f"there are no results at {path}: train on text first (shoulders train text_recursion)")
    content = read_json(file)
    if not set(content) >= NEEDED:
        raise CorruptFile(f"{file} holds no perplexity: it is not the result of a run on text")
    return Result(name, content, log)


def write_text_report(results: Sequence[Result], folder: Path) -> tuple[Path, str]:
    """Write table, numbers and curve of runs on text into a folder; return the path of the table and the headline.

    Raises:
        UsageError: there are no results, or they were measured on different texts.
        SaveFailed: the folder cannot be written.
    """
    if not results:
        raise UsageError("a report needs at least one measured run")
    texts = [{**result.content["recipe"]["text"], "tokens": result.content["tokens"]} for result in results]
    for result, text in zip(results, texts, strict=True):
        if text != texts[0]:
            raise UsageError(
                f"{result.name} and {results[0].name} were measured on different texts: {text}, {texts[0]}"
            )
    best = min(results, key=lambda result: result.content["perplexity"])
    headline = f"{best.name} predicts the text best: perplexity {best.content['perplexity']:.2f}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw_perplexity(results, folder)
        page = "\n".join([_table(results), "", headline, *(f"\n![perplexity]({name})" for name in drawn), ""])
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    write_json(folder / NUMBERS, {result.name: dict(result.content) for result in results})
    return folder / PAGE, headline


def _table(results: Sequence[Result]) -> str:
    contents = [result.content for result in results]
    columns = {
        "run": [result.name for result in results],
        "trained": [number(content["trained"]) for content in contents],
        "tokens read": [number(sum(line["positions"] for line in result.log)) for result in results],
        "perplexity": [f"{content['perplexity']:.2f}" for content in contents],
        "bits per byte": [f"{content['bits_per_byte']:.4f}" for content in contents],
    }
    return f"{markdown(columns, ['run'])}\n\n{contents[0]['tokens']:,} held-out tokens."
