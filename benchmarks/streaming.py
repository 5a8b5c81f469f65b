"""Memory and speed of the data pipeline on a suite of a thousand and of a million examples.

    python -m benchmarks.streaming [--small N] [--large N] [--read N] [--out FILE]

Two suites of N examples in all are written to a temporary folder, as `.jsonl` and `.jsonl.gz` files with the same kind
of records. For each suite, a process of its own reads examples of the shuffled mixture, rendered and tokenised with
SmolLM2's tokenizer, for a tiny language model: so the pipeline and its libraries are measured, and no model.
`suite_memory_ratio` is the peak resident size with the large suite divided by that with the small one. Also reported:
both peaks; the size before the suite is opened; and examples per second of processor time that are read as records,
read and rendered, and drawn, rendered and tokenised.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.pairs import report
from benchmarks.rivals import MODEL, peak_resident
from shoulders.evaluation.results import circumstances

SMALL, LARGE, READ = 1_000, 1_000_000, 5_000
WORDS = (
    "the",
    "of",
    "in",
    "was",
    "river",
    "city",
    "market",
    "player",
    "science",
    "animal",
    "music",
    "moved",
    "because",
)
TEMPLATES = """
templates:
  a: !Template
    {id: a, name: topic, jinja: "{{text}} What is this about? ||| {{answer_choices[label]}}",
     answer_choices: "World ||| Sports ||| Business", metadata: !TemplateMetadata {metrics: [Accuracy]}}
  b: !Template
    {id: b, name: title, jinja: "Write a title. {{text}} ||| {{title}}", answer_choices: null,
     metadata: !TemplateMetadata {metrics: [ROUGE]}}
"""


def main() -> None:
    """Run the benchmark and print the ratio last."""
    arguments = _arguments()
    if arguments.suite:
        print(json.dumps(_read(Path(arguments.suite), arguments.read)))
        return
    record = bench(arguments.small, arguments.large, arguments.read)
    report({"suite_memory_ratio": record["ratio"]}, {**record, **circumstances()}, arguments.out)


def bench(small: int = SMALL, large: int = LARGE, read: int = READ) -> dict[str, Any]:
    """Measure both suites, each in its own process; `ratio` is that of their peaks."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, examples in (("small", small), ("large", large)):
            suite = Path(folder) / name
            _write_suite(suite, examples)
            found[name] = {"examples": examples, **_in_own_process(suite, read)}
            print(f"{name}: {found[name]}", flush=True)
    return {**found, "ratio": found["large"]["peak_bytes"] / found["small"]["peak_bytes"]}


def _in_own_process(suite: Path, read: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--suite", str(suite), "--read", str(read)]
    environment = {**os.environ, "UNPACKED": str(suite.parent / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _read(suite: Path, count: int) -> dict[str, float]:
    """Return time and memory of reading, in this process."""
    from shoulders.data.mixture import Mixture
    from shoulders.data.readers import open_suite
    from shoulders.engine.batches import Lengths
    from shoulders.training.stream import Stream

    lm = _tiny_model()
    os.environ["SHOULDERS_CACHE"] = os.environ["UNPACKED"]  # only now, because the model is in the usual cache
    lm.ids("what the tokenizer loads when it is first used")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of loading
    before = peak_resident()
    begun = time.process_time()
    mixture = Mixture(open_suite(str(suite)), split="train", seed=0)
    seconds = {"open": time.process_time() - begun}
    drawn = [mixture.reference(position) for position in range(count)]
    tasks: list[Any] = [one.task for one in drawn]  # of a folder, which have their files
    records = [(task.splits["train"], one.row) for task, one in zip(tasks, drawn, strict=True)]
    stream = Stream(mixture, lm, lengths=Lengths(), prompt_length=100)
    parts: dict[str, Callable[[], Any]] = {
        "records": lambda: [rows[number]["id"] for rows, number in records],
        "rendered": lambda: [one.example() and None for one in drawn],
        "stream": lambda: [stream.take(1) and None for _ in range(count)],
    }
    for name, part in parts.items():
        begun = time.process_time()
        part()
        seconds[name] = time.process_time() - begun
    rates = {f"{name}_per_second": count / seconds[name] for name in parts}
    return {"before_bytes": before, "peak_bytes": peak_resident(), "open_seconds": seconds["open"], **rates}


def _tiny_model() -> Any:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from shoulders.backbone.frozen import FrozenLM
    from shoulders.backbone.sources import locate

    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = AutoTokenizer.from_pretrained(locate(MODEL))
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes)
    return FrozenLM(LlamaForCausalLM(config), tokenizer, "none")


def _write_suite(folder: Path, examples: int) -> None:
    """Write four data sets, every second one compressed."""
    for number in range(4):
        task = folder / f"set{number}"
        task.mkdir(parents=True)
        (task / "templates.yaml").write_text(TEMPLATES, encoding="utf-8")
        path = task / ("train.jsonl.gz" if number % 2 else "train.jsonl")
        with gzip.open(path, "wt", 1, encoding="utf-8") if number % 2 else path.open("w", encoding="utf-8") as lines:
            lines.writelines(_lines(examples // 4, number))


def _lines(count: int, seed: int) -> Iterator[str]:
    """Yield records of 20 to 60 words."""
    draw = random.Random(seed)
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(20, 60))
        record = {"id": number, "text": " ".join(words), "title": " ".join(words[:5]), "label": number % 3}
        yield json.dumps(record) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--small", type=int, default=SMALL, help="examples of the small suite")
    parser.add_argument("--large", type=int, default=LARGE, help="examples of the large suite")
    parser.add_argument("--read", type=int, default=READ, help="examples that are read of each")
    parser.add_argument("--out", help="write all figures to this JSON file")
    parser.add_argument("--suite", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
