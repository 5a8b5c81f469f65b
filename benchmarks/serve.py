"""Serving many scaffolds over SmolLM2-135M, each ratio measured in turn in one run.

    python -m benchmarks.serve [--rounds N] [--quick] [--only NAME ...] [--vllm PYTHON] [--out FILE]

The server is a process of its own; clients speak HTTP. Every answer has exactly the asked length, and all texts are
new in every round, so that nothing is read from a cache but what one measurement shares. Answers come as a whole, as
those of `transformers.generate` do, except where first tokens are timed and where "streamed" is said.

mixed      32 requests at once over 32 scaffolds (11 soft prompts, 11 ID-PT, 10 suffixes), and over one of each kind:
           `mixed_vs_same_throughput` compares with the mean of the three, which have the same kinds of work;
           `mixed_vs_soft_prompt_throughput` with one soft prompt alone, whose keys and values are known
peft       16 requests at once over 16 soft prompts, and PEFT's `set_adapter` and `generate` one by one in process
document   16 suffixes over one document of 512 tokens at once, and over 16 documents; then one document one by one:
           the time to the first token of the slowest of the 2nd to 16th, and their median, against that of the first
decode     1, 8 and 32 requests of equal lengths, as a whole and streamed, and `transformers.generate` on the same
           batch in process
continuous 64 requests of 16 to 256 tokens at once, and `transformers.generate` in batches of 16 that run to their end;
           also batches of 16 through the server, each of which waits for the last
scaffolds  resident size of a server with 1,000 soft prompts less that of one with a single one, after the first answer
vllm       (with --vllm) 16 requests at once over 16 LoRA adapters of rank 16 through vLLM, against 16 soft prompts here
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import in_turn, ratio, report
from benchmarks.rivals import MODEL
from benchmarks.servers import Server, free_port, input_prompt, saved, serving, soft_prompt, started
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.evaluation.results import circumstances
from shoulders.records import Placement
from shoulders.scaffolds.peft import to_peft
from shoulders.serving.load import Request

GREEDY = {"temperature": 0}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the measurements: numbers of requests, and of tokens in and out."""

    mixed: int = 32
    read: int = 64
    answer: int = 32
    switched: int = 16
    document: int = 512
    short: int = 8
    decoded: tuple[int, ...] = (1, 8, 32)
    decode: int = 64
    several: int = 64
    batch: int = 16
    shortest: int = 16
    longest: int = 256
    scaffolds: int = 1000


QUICK = Sizes(6, 16, 4, 3, 64, 3, (1, 2), 4, 6, 2, 2, 8, 20)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements have: the frozen model, a folder for scaffolds, sizes, and numbers for new texts."""

    lm: FrozenLM
    folder: Path
    sizes: Sizes
    rounds: int
    seeds: Iterator[int]
    vllm: str = ""

    def texts(self, count: int, length: int) -> list[list[int]]:
        """Return texts of random tokens that no measurement has read before."""
        generator = torch.Generator().manual_seed(next(self.seeds))
        return torch.randint(100, self.lm.vocabulary, (count, length), generator=generator).tolist()

    def soft_prompts(self, count: int, placement: Placement = Placement.PREFIX) -> dict[str, str]:
        """Save soft prompts; return their folders by name."""
        names = [f"{placement.value}-{number}" for number in range(count)]
        return {
            name: saved(soft_prompt(self.lm, seed, placement), self.folder / name) for seed, name in enumerate(names)
        }

    @contextmanager
    def server(self, folders: dict[str, str]) -> Iterator[Server]:
        """Start a server of these scaffolds and warm it up."""
        names = [f"{name}={folder}" for name, folder in folders.items()]
        with serving(names, "--backbone", MODEL) as server:
            server.run(asked(["bare"], self.texts(2, self.sizes.read), 2))
            yield server


def asked(
    models: Sequence[str], texts: Sequence[Sequence[int]], length: int | Sequence[int], *, streamed: bool = False
) -> list[Request]:
    """Return a greedy request of exactly these lengths for each text, over the models in turn."""
    lengths = [length] * len(texts) if isinstance(length, int) else length
    return [
        Request(models[number % len(models)], text, tokens, fields={**GREEDY, "min_tokens": tokens}, streamed=streamed)
        for number, (text, tokens) in enumerate(zip(texts, lengths, strict=True))
    ]


def bench_mixed(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure many scaffolds in one batch against one scaffold."""
    sizes = bench.sizes
    third = -(-sizes.mixed // 3)
    prefixes = bench.soft_prompts(third)
    suffixes = bench.soft_prompts(sizes.mixed - 2 * third, Placement.SUFFIX)
    inputs = {}
    for number in range(third):
        torch.manual_seed(number)
        inputs[f"input-{number}"] = saved(input_prompt(bench.lm), bench.folder / f"input-{number}")
    everything = {**prefixes, **inputs, **suffixes}
    arms = {"mixed": list(everything), "soft prompt": ["prefix-0"], "ID-PT": ["input-0"], "suffix": ["suffix-0"]}
    with bench.server(everything) as server:

        def run(models: Sequence[str]) -> None:
            server.run(asked(models, bench.texts(sizes.mixed, sizes.read), sizes.answer))

        run(arms["mixed"])
        seconds = in_turn("mixed", {name: lambda some=some: run(some) for name, some in arms.items()}, bench.rounds)
    kinds = [sum(third) / 3 for third in zip(*(seconds[name] for name in arms if name != "mixed"), strict=True)]
    ratios = {
        "mixed_vs_same_throughput": ratio(kinds, seconds["mixed"]),
        "mixed_vs_soft_prompt_throughput": ratio(seconds["soft prompt"], seconds["mixed"]),
    }
    return ratios, {"seconds": seconds}


def bench_peft(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure soft prompts in one batch against PEFT, which switches from one to the next."""
    sizes, folders = bench.sizes, bench.soft_prompts(bench.sizes.switched)
    answers: dict[str, list[str]] = {}
    peft = _peft_model(bench, list(folders))

    def switched(texts: Sequence[Sequence[int]]) -> None:
        answers["peft"] = []
        for name, text in zip(folders, texts, strict=True):
            peft.set_adapter(name)
            answers["peft"].append(_generated(peft, [text], sizes.answer, bench)[0])

    with bench.server(folders) as server:

        def served(texts: Sequence[Sequence[int]]) -> None:
            load = server.run(asked(list(folders), texts, sizes.answer))
            by_name = {one.request.model: one.text for one in load.outcomes}
            answers["ours"] = [by_name[name] for name in folders]

        served(bench.texts(sizes.switched, sizes.read))
        same, seconds = 0, {"ours": [], "peft": []}
        for _ in range(bench.rounds):
            texts = bench.texts(sizes.switched, sizes.read)
            took = in_turn("16 prompts", {"ours": lambda: served(texts), "peft": lambda: switched(texts)}, 1)  # noqa: B023
            for name, some in took.items():
                seconds[name] += some
            same += sum(one == other for one, other in zip(answers["ours"], answers["peft"], strict=True))
    record = {"seconds": seconds, "equal_answers": same, "answers": bench.rounds * sizes.switched}
    return {"mixed_vs_peft_switching": ratio(seconds["peft"], seconds["ours"])}, record


def _peft_model(bench: Bench, names: Sequence[str]) -> Any:
    """Return PEFT's model with the same soft prompts as adapters."""
    model: Any = None
    for seed, name in enumerate(names):
        folder = bench.folder / f"peft-{name}"
        to_peft(soft_prompt(bench.lm, seed), bench.lm, folder)
        if model is None:
            model = PeftModel.from_pretrained(_their_model(bench), str(folder), adapter_name=name)
        else:
            model.load_adapter(str(folder), adapter_name=name)
    return model.eval()


def _their_model(bench: Bench) -> PreTrainedModel:
    """Return the frozen model as transformers loads it, in the same type."""
    return AutoModelForCausalLM.from_pretrained(locate(MODEL), dtype=bench.lm.dtype).eval()


@torch.inference_mode()
def _generated(model: Any, texts: Sequence[Sequence[int]], length: int, bench: Bench) -> list[str]:
    """Generate exactly so many tokens after texts of equal length with transformers; return their texts."""
    ids = torch.tensor(texts)
    settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": bench.lm.end}
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[:, -length:]
    return [bench.lm.text(row) for row in found.tolist()]


def bench_document(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure suffixes over one document against as many documents, and the time to each first token."""
    sizes, folders = bench.sizes, bench.soft_prompts(bench.sizes.switched, Placement.SUFFIX)
    names, shares = list(folders), []
    with bench.server(folders) as server:

        def run(documents: int) -> None:
            texts = bench.texts(documents, sizes.document) * (len(names) // documents)
            server.run(asked(names, texts, sizes.short))

        run(1)
        arms = {"shared": lambda: run(1), "separate": lambda: run(len(names))}
        seconds = in_turn("document", arms, bench.rounds)
        for _ in range(bench.rounds):
            texts = bench.texts(1, sizes.document) * len(names)
            load = server.run(asked(names, texts, sizes.short, streamed=True), clients=1)
            waited = [one.first or 0.0 for one in load.outcomes]
            shares.append([one / waited[0] for one in waited[1:]])
    later = [statistics.median(rounds) for rounds in zip(*shares, strict=True)]
    ratios = {
        "shared_document_speedup": ratio(seconds["separate"], seconds["shared"]),
        "shared_document_first_token": max(later),
        "shared_document_first_token_median": statistics.median(later),
    }
    return ratios, {"seconds": seconds, "shares_of_the_first": shares}


def bench_decode(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the bare model through the server against transformers in process."""
    sizes, theirs, ratios, record = bench.sizes, _their_model(bench), {}, {}
    with bench.server({}) as server:
        for rows in sizes.decoded:

            def served(rows: int = rows, *, streamed: bool = False) -> None:
                server.run(asked(["bare"], bench.texts(rows, sizes.read), sizes.decode, streamed=streamed))

            def generated(rows: int = rows) -> None:
                _generated(theirs, bench.texts(rows, sizes.read), sizes.decode, bench)

            generated()
            served()
            arms = {"server": served, "streamed": partial(served, streamed=True), "transformers": generated}
            seconds = in_turn(f"{rows} rows", arms, bench.rounds)
            ratios[f"decode_vs_generate_{rows}"] = ratio(seconds["transformers"], seconds["server"])
            ratios[f"decode_streamed_vs_generate_{rows}"] = ratio(seconds["transformers"], seconds["streamed"])
            record[f"{rows} rows"] = {
                "seconds": seconds,
                "tokens_per_second": {
                    name: rows * sizes.decode / statistics.median(took) for name, took in seconds.items()
                },
            }
    return ratios, record


def bench_continuous(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure requests that leave when they are done against batches that wait for their longest."""
    sizes, theirs = bench.sizes, _their_model(bench)
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(sizes.shortest, sizes.longest + 1, (sizes.several,), generator=draws).tolist()
    starts = range(0, sizes.several, sizes.batch)
    with bench.server({}) as server:

        def static() -> None:
            texts = bench.texts(sizes.several, sizes.read)
            for start in starts:
                rows = slice(start, start + sizes.batch)
                _generated(theirs, texts[rows], max(lengths[rows]), bench)

        def waves() -> None:
            texts = bench.texts(sizes.several, sizes.read)
            for start in starts:
                rows = slice(start, start + sizes.batch)
                server.run(asked(["bare"], texts[rows], lengths[rows]))

        def continuous(clients: int) -> None:
            server.run(asked(["bare"], bench.texts(sizes.several, sizes.read), lengths), clients)

        arms = {
            "continuous": lambda: continuous(sizes.several),
            "16 at a time": lambda: continuous(sizes.batch),
            "waves of 16": waves,
            "static": static,
        }
        seconds = in_turn("continuous", arms, bench.rounds)
    ratios = {
        "continuous_vs_static": ratio(seconds["static"], seconds["continuous"]),
        "continuous_16_vs_waves_of_16": ratio(seconds["waves of 16"], seconds["16 at a time"]),
    }
    return ratios, {"seconds": seconds, "tokens": sum(lengths)}


def bench_scaffolds(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the memory that many registered scaffolds take, and the time to the first answer."""
    sizes, record = bench.sizes, {}
    for count in (1, sizes.scaffolds):
        folders = bench.soft_prompts(count)
        with serving([f"{name}={folder}" for name, folder in folders.items()], "--backbone", MODEL) as server:
            server.run(asked([list(folders)[-1]], bench.texts(1, sizes.read), sizes.short))
            record[str(count)] = {
                "first_answer_seconds": time.perf_counter() - server.begun,
                "resident_bytes": server.resident(),
            }
    few, many = record.values()
    ratios = {
        "thousand_scaffolds_extra_mb": (many["resident_bytes"] - few["resident_bytes"]) / 1e6,
        "first_answer_seconds": few["first_answer_seconds"],
        "thousand_scaffolds_first_answer_seconds": many["first_answer_seconds"],
    }
    return ratios, record


def bench_vllm(bench: Bench) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure soft prompts here against LoRA adapters in vLLM, which has no soft prompts."""
    if not bench.vllm:
        return {}, {}
    sizes, folders, adapters = bench.sizes, bench.soft_prompts(bench.sizes.switched), _adapters(bench)
    port, backbone = free_port(), str(bench.folder / "backbone")
    _their_model(bench).save_pretrained(backbone)  # from the GGUF file vLLM would keep them quantised
    bench.lm.tokenizer.save_pretrained(backbone)
    listed = [f"{name}={folder}" for name, folder in adapters.items()]
    command = [bench.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", backbone, "--port", str(port)]
    options = ["--max-model-len", "1024", "--max-loras", str(len(adapters)), "--no-enable-prefix-caching"]
    command += [*options, "--enable-lora", "--max-lora-rank", "16", "--lora-modules", *listed]
    with bench.server(folders) as ours, started(command, port, "/health") as theirs:

        def run(server: Server, names: Sequence[str]) -> Callable[[], None]:
            return lambda: server.run(asked(names, bench.texts(len(names), sizes.read), sizes.answer)) and None

        arms = {"soft prompts": run(ours, list(folders)), "vLLM's LoRA": run(theirs, list(adapters))}
        for arm in arms.values():
            arm()
        seconds = in_turn("vLLM", arms, bench.rounds)
    return {"mixed_vs_vllm_lora": ratio(seconds["vLLM's LoRA"], seconds["soft prompts"])}, {"seconds": seconds}


def _adapters(bench: Bench) -> dict[str, str]:
    """Save LoRA adapters with random updates; return their folders by name."""
    folders = {}
    for number in range(bench.sizes.switched):
        torch.manual_seed(number)
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=16, target_modules="all-linear", init_lora_weights=False, lora_alpha=1
        )
        folders[f"lora-{number}"] = str(bench.folder / f"lora-{number}")
        get_peft_model(_their_model(bench), config).save_pretrained(folders[f"lora-{number}"])
    return folders


PARTS: dict[str, Callable[[Bench], tuple[dict[str, float], dict[str, Any]]]] = {
    "mixed": bench_mixed,
    "peft": bench_peft,
    "document": bench_document,
    "decode": bench_decode,
    "continuous": bench_continuous,
    "scaffolds": bench_scaffolds,
    "vllm": bench_vllm,
}


def main() -> None:
    """Run the parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    lm = FrozenLM.load(MODEL, device="cpu")
    ratios: dict[str, float] = {}
    record: dict[str, Any] = {"dtype": str(lm.dtype).removeprefix("torch.")}
    with tempfile.TemporaryDirectory() as folder:
        sizes = QUICK if arguments.quick else Sizes()
        bench = Bench(lm, Path(folder), sizes, arguments.rounds, itertools.count(), arguments.vllm)
        for name in arguments.only or PARTS:
            (bench.folder / name).mkdir()
            found, record[name] = PARTS[name](replace(bench, folder=bench.folder / name))
            ratios.update(found)
    report(ratios, {**record, **circumstances("peft")}, arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="measure these parts only")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs, not to measure")
    parser.add_argument("--vllm", default="", help="Python of an environment with vLLM, to measure its LoRA")
    parser.add_argument("--out", help="write all figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
