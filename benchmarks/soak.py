"""A server under twice the load that it can carry, with clients that leave and scaffolds that are replaced.

    python -m benchmarks.soak [--minutes 30] [--rows 16] [--deadline 120] [--out FILE]

SmolLM2-135M in fp32 under bare, soft prompts, suffixes, ID-PT and two passes. Twice as many clients as the server
answers at once ask without a pause; a tenth of them leave half-way; two names are replaced every few seconds. Each
answer must be the one that the same scaffold gives alone, in this process; a request that ran while its scaffold was
replaced may be answered by either version, a later one only by the new. Texts whose greedy answer hangs on less than
0.001 in log-probability are not asked.

Prints: wrong answers, lost requests, requests that still run in the end, drift of the resident size in percent (the
last tenth of the time against the third), 95th percentile of the latency.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import report
from benchmarks.rivals import MODEL
from benchmarks.servers import Server, input_prompt, saved, serving, soft_prompt
from shoulders.backbone.choosing import Choice
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import generate
from shoulders.evaluation.results import circumstances
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.serving.load import Endpoint, Load, Mix, Outcome, Request, load, random_prompts

WORDS, SHORTEST, LONGEST = 48, 8, 32
LEAVING, EVERY, DECIDED = 0.1, 5.0, 1e-3  # share of clients; seconds between replacements; least margin
FLAT = 5.0  # percent by which the server may grow
CHANGING = ("changing-a", "changing-b")


@dataclass(slots=True)
class Life:
    """The time in which a version of a scaffold may have answered (`time.perf_counter`)."""

    version: str
    begun: float
    ended: float = float("inf")

    def meets(self, outcome: Outcome) -> bool:
        """Return whether the version may have answered the request."""
        return self.begun <= outcome.ended and outcome.begun <= self.ended


@dataclass(frozen=True, slots=True)
class Offline:
    """Answers that scaffolds give alone.

    Attributes:
        texts: the texts that are asked.
        answers: the longest answer of a version of a scaffold to each text, as token ids; None if it hangs on little.
        lm: the frozen model.
    """

    texts: Sequence[str]
    answers: Mapping[str, Sequence[list[int] | None]]
    lm: FrozenLM

    def right(self, outcome: Outcome, version: str) -> bool:
        """Return whether the answer is that of a version, or the beginning of it for a client that left."""
        ids = self.answers[version][self.texts.index(str(outcome.request.prompt))]
        text = self.lm.text((ids or [])[: outcome.request.max_tokens])
        return text.startswith(outcome.text) if outcome.request.leaves else text == outcome.text


def scaffolds(lm: FrozenLM) -> dict[str, Scaffold]:
    """Return the scaffolds by name; those of `CHANGING` have two versions."""
    torch.manual_seed(0)
    fixed: dict[str, Scaffold] = {
        "bare": Bare(),
        "soft-a": soft_prompt(lm, 1),
        "soft-b": soft_prompt(lm, 2, length=7),
        "suffix-a": soft_prompt(lm, 3, Placement.SUFFIX),
        "suffix-b": soft_prompt(lm, 4, Placement.SUFFIX),
        "input": input_prompt(lm),
        "two-passes": Recursion(lm, RecursionShape(layers=1)),
    }
    changing = itertools.product(CHANGING, ("1", "2"))
    return fixed | {f"{name}/{version}": soft_prompt(lm, 10 + at) for at, (name, version) in enumerate(changing)}


def offline(lm: FrozenLM, some: Mapping[str, Scaffold], count: int) -> Offline:
    """Answer every text with every scaffold, each alone."""
    texts = random_prompts(count, WORDS, seed=0)
    answers = {name: [_alone(lm, one, text) for text in texts] for name, one in some.items()}
    undecided = sum(ids is None for rows in answers.values() for ids in rows)
    print(f"{len(answers)} scaffolds x {count} texts answered alone; {undecided} hang on too little", flush=True)
    return Offline(texts, answers, lm)


def _alone(lm: FrozenLM, scaffold: Scaffold, text: str) -> list[int] | None:
    given = question_batch([encode(Question(text), lm)], lm, scaffold)
    choice = Choice(lm.ends)
    ids = generate(lm, scaffold, given, longest=LONGEST, shortest=LONGEST, choice=choice)
    return ids[0] if choice.generated(ids)[0].margin >= DECIDED else None


def requests(known: Offline, names: Sequence[str], minutes: float) -> Iterator[Request]:
    """Yield requests of random lengths until the time is over; only those whose answer is decided."""
    draws, end = random.Random(0), time.perf_counter() + 60 * minutes
    mix = Mix(names, known.texts, sys.maxsize, LONGEST, LEAVING)
    for one in mix.requests():
        if time.perf_counter() > end:
            return
        text = known.texts.index(str(one.prompt))
        versions = [rows for version, rows in known.answers.items() if version.split("/")[0] == one.model]
        if all(rows[text] is not None for rows in versions):
            length = draws.randint(SHORTEST, LONGEST)
            yield Request(one.model, one.prompt, length, one.leaves, {"temperature": 0, "min_tokens": length})


@dataclass(frozen=True, slots=True)
class Watch:
    """What happens beside the load: scaffolds are replaced, and the size of the server is taken."""

    server: Server
    folder: Path
    lives: dict[str, list[Life]] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)

    async def replace(self) -> None:
        """Replace the changing scaffolds in turn, for ever."""
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=600) as client:
            for number in itertools.count():
                await asyncio.sleep(EVERY)
                name = CHANGING[number % 2]
                version = f"{name}/{'12'[self.lives[name][-1].version.endswith('1')]}"
                body = {"name": name, "path": str(self.folder / version), "replace": True}
                begun = time.perf_counter()
                (await client.post("/v1/scaffolds", json=body)).raise_for_status()
                self.lives[name][-1].ended = time.perf_counter()
                self.lives[name].append(Life(version, begun))

    async def measure(self) -> None:
        """Take the size of the server every second, for ever."""
        while True:
            self.resident.append(self.server.resident())
            await asyncio.sleep(1)

    def drift(self) -> float:
        """Return by how much the last tenth of the sizes is larger than the third, in percent."""
        tenth = max(1, len(self.resident) // 10)
        early, late = self.resident[2 * tenth : 3 * tenth] or self.resident[:1], self.resident[-tenth:]
        return 100 * (statistics.median(late) / statistics.median(early) - 1)


async def soak(watch: Watch, asked: Iterator[Request], clients: int) -> Load:
    """Send the requests while scaffolds are replaced."""
    beside = [asyncio.create_task(watch.replace()), asyncio.create_task(watch.measure())]
    try:
        done = await load(Endpoint(watch.server.url), asked, clients=clients)
        for task in beside:
            if task.done():
                task.result()  # raises what ended it
        return done
    finally:
        for task in beside:
            task.cancel()


def still_running(server: Server) -> int:
    """Return the number of requests that the server still works on, a second after the last was answered."""
    time.sleep(1)
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    wanted = ("shoulders:requests_running", "shoulders:requests_waiting")
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(wanted)))


def judged(done: Load, known: Offline, lives: Mapping[str, Sequence[Life]]) -> Counter[str]:
    """Count answers by what became of them; print the first that are wrong or lost."""
    counts: Counter[str] = Counter()
    for one in done.outcomes:
        what = "lost" if one.error or not (one.request.leaves or one.tokens == one.request.max_tokens) else "right"
        name = one.request.model
        versions = [life.version for life in lives[name] if life.meets(one)] if name in lives else [name]
        if what == "right" and not any(known.right(one, version) for version in versions):
            what = "wrong"
        counts[what] += 1
        if what != "right" and counts[what] <= 3:
            print(f"{what}: {name}, {one.request.max_tokens} tokens: {one.error or one.text!r}", flush=True)
    return counts


def main() -> None:
    """Run the soak, print what it found, and fail if an answer is wrong or lost, or the server grows."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    lm = FrozenLM.load(MODEL, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        some = scaffolds(lm)
        for name, one in some.items():
            if name != "bare":
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                saved(one, Path(folder) / name)
        known = offline(lm, some, arguments.texts)
        served = {name: name for name in some if "/" not in name and name != "bare"}
        served |= {name: f"{name}/1" for name in CHANGING}
        options = ["--backbone", MODEL, "--dtype", "float32", "--rows", str(arguments.rows), "--allow", folder]
        options += ["--deadline", str(arguments.deadline)]
        with serving([f"{name}={Path(folder) / path}" for name, path in served.items()], *options) as server:
            watch = Watch(server, Path(folder), {name: [Life(f"{name}/1", 0)] for name in CHANGING})
            asked = requests(known, ["bare", *served], arguments.minutes)
            done = asyncio.run(soak(watch, asked, 2 * arguments.rows))
            counts, running = judged(done, known, watch.lives), still_running(server)
    summary = done.summary()
    found = {
        "soak_requests": len(done.outcomes),
        "soak_replacements": sum(len(lives) - 1 for lives in watch.lives.values()),
        "soak_left": summary["left"],
        "soak_wrong": counts["wrong"],
        "soak_lost": counts["lost"],
        "soak_still_running": running,
        "soak_memory_drift_percent": watch.drift(),
        "soak_latency_p95": summary["latency_p95"] or 0.0,
    }
    record: dict[str, Any] = {"summary": summary, "resident_bytes": watch.resident, "asked": vars(arguments)}
    report(found, {**record, **circumstances()}, arguments.out)
    sys.exit(bool(counts["wrong"] or counts["lost"] or running or watch.drift() > FLAT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rows", type=int, default=16, help="requests that the server answers at once")
    parser.add_argument("--deadline", type=float, default=120, help="seconds after which the server gives up a request")
    parser.add_argument("--texts", type=int, default=12, help="texts that are asked, each answered alone before")
    parser.add_argument("--out", help="write all figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
