"""Requests that share the forwards of one model: each gets what it gets alone, and what is known is not read again."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mixed import SMALL, one, several
from shoulders.answering.answerer import ModelAnswerer
from shoulders.backbone import banks
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine import reading
from shoulders.engine.batches import encode, question_batch, rows_of
from shoulders.engine.decode import generate, likeliest, sampled, score
from shoulders.engine.inference import Answering, Sampling
from shoulders.engine.requests import Request, SamplingParameters
from shoulders.engine.scheduler import Scheduler
from shoulders.engine.work import Work
from shoulders.errors import ContextFull, PoolTooSmall, QueueFull, RequestFailed, Stopped, UsageError
from shoulders.records import Placement, ScaffoldInput
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.low_rank import LowRank, Scales
from shoulders.scaffolds.program import Pass
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import TEXTS
from toys import moved

DOCUMENT = "The sun is a star. The moon is not. A dog barks and a cat does not. Paris is the capital of France. "


def scheduler(lm, **sizes):
    return Scheduler(lm, **{"memory_bytes": 1 << 24, "prefill_tokens": 16, **sizes})


def ended(lm_scheduler, tickets):
    """The results, after as many steps as it takes; the bound of the pool holds after each."""
    pool = lm_scheduler._pool
    while lm_scheduler.step():
        assert pool.bank_bytes + pool.texts.nbytes <= pool.memory_bytes
    assert pool.bank_bytes == 0
    return [ticket.result(0) for ticket in tickets]


def tokens(completed):
    return [branch.ids for branch in completed.branches]


def alone(lm, request):
    """What a request generates by itself, without a scheduler."""
    return likeliest(lm, request.scaffold, request.given, longest=request.longest)[0]


def requests(lm, scaffolds, longest=None):
    """A request for each scaffold, over texts of different lengths and for answers of different lengths."""
    for number, scaffold in enumerate(scaffolds):
        given = one(lm, scaffold, TEXTS[number % len(TEXTS)], DOCUMENT[:60] if number % 2 else "")
        yield Request(scaffold=scaffold, given=given, longest=longest or 3 + 5 * (number % 3))


def check(lm, asked, results):
    for request, completed in zip(asked, results, strict=True):
        wanted = alone(lm, request)
        (branch,) = completed.branches
        assert branch.ids == wanted.ids
        assert branch.log_probability == pytest.approx(wanted.log_probability, rel=1e-3, abs=1e-3)
        assert branch.margin == pytest.approx(wanted.margin, rel=1e-2, abs=1e-3)


def test_scheduled_is_direct(any_lm, tiny_encoder, monkeypatch):
    """All scaffolds at once, texts in chunks, rows that end and join at different steps, and banks that must grow."""
    monkeypatch.setattr(banks, "SLACK", 4)
    monkeypatch.setattr(banks, "COLUMNS", 2)
    monkeypatch.setattr(banks, "ROWS", 2)
    scaffolds = several(any_lm, tiny_encoder)
    asked = list(requests(any_lm, scaffolds if any_lm.config.model_type == "llama" else scaffolds[::2]))
    run = scheduler(any_lm, rows=9)
    tickets = [run.submit(request) for request in asked[::2]]
    for _ in range(3):
        assert run.step()
    tickets += [run.submit(request) for request in asked[1::2]]
    asked = [*asked[::2], *asked[1::2]]
    check(any_lm, asked, ended(run, tickets))
    assert run.stats().finished == len(asked)


def test_steps_of_all_scaffolds_are_as_many_forwards_as_the_deepest_has_passes(lm, tiny_encoder, monkeypatch):
    scaffolds = several(lm, tiny_encoder)
    run = scheduler(lm, prefill_tokens=1000)
    tickets = [run.submit(request) for request in requests(lm, scaffolds, longest=6)]
    run.step()
    rows = []
    forward = type(lm.model.base_model).forward

    def counting(self, *arguments, **named):
        if self is lm.model.base_model:
            rows.append(tuple(named["inputs_embeds"].shape[:2]))
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(lm.model.base_model), "forward", counting)
    run.step()
    passes = [scaffold.passes - (scaffold.encoder is lm) for scaffold in scaffolds]
    assert rows == [(sum(count > number for count in passes), 1) for number in range(3)]
    ended(run, tickets)


def test_a_step_copies_no_keys(lm, monkeypatch):
    """Tensors of a bank stay where they are while rows are continued."""
    run = scheduler(lm)
    ticket = run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=40, shortest=40))
    run.step()
    run.step()
    (bank,) = run._pool._banks.values()
    places = [layer.keys.data_ptr() for layer in bank._layers]
    moved = []
    monkeypatch.setattr(type(bank), "_move", lambda *_: moved.append(1))
    for _ in range(20):
        run.step()
    assert [layer.keys.data_ptr() for layer in bank._layers] == places
    assert not moved
    monkeypatch.undo()
    ended(run, [ticket])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_in_every_layer_and_a_connector_of_a_norm_alone(tiny_lm, family):
    lm = tiny_lm(family)
    scaffolds = [DeepPrompt.from_vocabulary(lm, length=5), Recursion(lm, RecursionShape(layers=0)), Bare()]
    asked = [*requests(lm, scaffolds), *requests(lm, scaffolds)]
    run = scheduler(lm)
    check(lm, asked, ended(run, [run.submit(request) for request in asked]))


def test_layers_that_keep_a_state_run_one_by_one(tiny_lm):
    lm = tiny_lm("qwen3_5")
    asked = list(requests(lm, [Bare(), SoftPrompt(from_vocabulary(lm)(4)), Bare()]))
    run = scheduler(lm)
    check(lm, asked, ended(run, [run.submit(request) for request in asked]))
    assert run.stats().hits == 0


def test_rows_of_very_different_lengths_have_banks_of_their_own(lm, monkeypatch):
    monkeypatch.setattr("shoulders.engine.pool.SHORT", 5)
    asked = [Request(scaffold=Bare(), given=one(lm, Bare(), text), longest=6) for text in (TEXTS[1], DOCUMENT[:80])]
    run = scheduler(lm, prefill_tokens=1000)
    tickets = [run.submit(request) for request in asked]
    run.step()
    run.step()
    assert len(run._pool._banks) == 2
    check(lm, asked, ended(run, tickets))


# Sharing by content


def suffixes(lm, count):
    return [SoftPrompt(from_vocabulary(lm, seed=number)(4), Placement.SUFFIX) for number in range(count)]


def test_a_document_is_read_once_for_all_that_ask_after_it(any_lm):
    """Suffix and infix prompts, deep ones, the bare model: what they read first is the same."""
    lm = any_lm
    scaffolds = [
        *suffixes(lm, 2),
        SoftPrompt(from_vocabulary(lm, seed=5)(3), Placement.INFIX),
        Recursion(lm, RecursionShape(layers=1)),
        Bare(),
    ]
    asked = [Request(scaffold=one_, given=one(lm, one_, "Why?", DOCUMENT), longest=5) for one_ in scaffolds]
    run = scheduler(lm)
    results = ended(run, [run.submit(request) for request in asked])
    check(lm, asked, results)
    document = len(lm.ids(DOCUMENT))
    assert results[0].cached == 0
    assert all(completed.cached >= document - 1 for completed in results[1:])
    second_pass = asked[3].given.embeds.shape[1]
    assert run.stats().misses == second_pass + sum(completed.read - completed.cached for completed in results)
    again = ended(run, [run.submit(request) for request in asked])
    assert [tokens(one_) for one_ in again] == [tokens(one_) for one_ in results]
    assert all(one_.cached == one_.read for one_ in again)


def test_a_fixed_prompt_is_read_once(lm):
    prompt = SoftPrompt(from_vocabulary(lm)(20))
    asked = [Request(scaffold=prompt, given=one(lm, prompt, text), longest=4) for text in TEXTS]
    run = scheduler(lm)
    results = ended(run, [run.submit(request) for request in asked])
    check(lm, asked, results)
    assert [completed.cached >= 20 for completed in results] == [False, True, True, True, True]


def test_the_second_waits_for_what_the_first_is_reading(lm):
    """Two at the same time: the text goes through the model once, though both have begun."""
    first, second = suffixes(lm, 2)
    asked = [Request(scaffold=one_, given=one(lm, one_, "Why?", DOCUMENT), longest=2) for one_ in (first, second)]
    run = scheduler(lm, prefill_tokens=4)
    tickets = [run.submit(request) for request in asked]
    results = ended(run, tickets)
    check(lm, asked, results)
    text = asked[0].given.embeds.shape[1]
    assert [completed.cached for completed in results] == [0, text]
    assert run.stats().misses == text + 2 * 4


def test_a_short_question_does_not_wait_for_a_long_document(lm):
    """It comes later, and has its answer while the document is still being read, which has half of each step."""
    long = Request(scaffold=Bare(), given=one(lm, Bare(), "Why?", DOCUMENT), longest=2)
    short = Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[1]), longest=2)
    run = scheduler(lm, prefill_tokens=1)
    tickets = [run.submit(long), run.submit(short)]
    steps = {0: 0, 1: 0}
    while run.step():
        for number, ticket in enumerate(tickets):
            steps[number] += not ticket.done
    columns = long.given.embeds.shape[1], short.given.embeds.shape[1]
    assert steps[1] <= -(-columns[1] // 4) + 2 < steps[0] <= -(-columns[0] // 4) + 3
    check(lm, [long, short], [ticket.result(0) for ticket in tickets])


def test_a_reader_that_leaves_does_not_hold_up_those_that_wait_for_it(lm):
    first, second = suffixes(lm, 2)
    asked = [Request(scaffold=one_, given=one(lm, one_, "Why?", DOCUMENT), longest=2) for one_ in (first, second)]
    run = scheduler(lm, prefill_tokens=1)
    tickets = [run.submit(request) for request in asked]
    run.step()
    tickets[0].cancel()
    (left, completed) = ended(run, tickets)
    check(lm, asked[1:], [completed])
    assert left.branches[0].finish == "cancelled"


def replaced(scaffold, lm):
    """Another scaffold of the same kind, sizes and name, with other values."""
    other = SoftPrompt(scaffold.prompt.detach() * 1.5, scaffold.placement)
    other.origin = scaffold.origin
    return other.around(lm)


@pytest.mark.parametrize("placement", list(Placement))
def test_scaffolds_that_differ_in_anything_never_meet(lm, placement):
    """Other parameters under the same name, tokens and sizes; another placement; no prompt; changed in place."""
    prompt = SoftPrompt(from_vocabulary(lm)(4), placement).around(lm)
    others = [prompt, replaced(prompt, lm), SoftPrompt(prompt.prompt.detach(), Placement.INFIX), Bare()]
    run = scheduler(lm)
    for scaffold in (*others, *others):
        request = Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[2], DOCUMENT[:40]), longest=6, label="same")
        check(lm, [request], ended(run, [run.submit(request)]))
    assert run.stats().labels == {"same": 8}
    with torch.no_grad():
        prompt.prompt.mul_(-2)
    request = Request(scaffold=prompt, given=one(lm, prompt, TEXTS[2], DOCUMENT[:40]), longest=6)
    check(lm, [request], ended(run, [run.submit(request)]))


def reaching_every_layer(lm):
    """Pairs of scaffolds that reach every layer, of the same sizes and with other values."""
    return [
        *(DeepPrompt.from_vocabulary(lm, length=4, seed=seed) for seed in (0, 1)),
        *(moved(LowRank.new(LowRank.Config(rank=2), lm)) for _ in range(2)),
        *(moved(Scales.new(Scales.Config(outputs=("o_proj",), inputs=("down_proj",)), lm)) for _ in range(2)),
    ]


def test_scaffolds_that_reach_every_layer_share_no_text_but_their_own(lm):
    scaffolds = [*reaching_every_layer(lm), Bare()]
    run = scheduler(lm)
    for scaffold in (*scaffolds, *scaffolds):
        request = Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[2]), longest=6)
        check(lm, [request], ended(run, [run.submit(request)]))
    assert run.stats().hits == len(scaffolds) * len(lm.ids(TEXTS[2]))
    for scaffold in scaffolds[:-1]:
        moved(scaffold)
        request = Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[2]), longest=6)
        (completed,) = ended(run, [run.submit(request)])
        check(lm, [request], [completed])
        assert completed.cached == 0


def test_edits_after_a_document_share_its_reading(lm):
    """Suffix forms of deep prompts and low-rank updates: the text before them is the bare model's."""
    scaffolds = [
        Bare(),
        *(DeepPrompt.from_vocabulary(lm, length=4, seed=seed, placement="suffix") for seed in (0, 1)),
        *(moved(LowRank.new(LowRank.Config(rank=2, placement=Placement.SUFFIX), lm)) for _ in range(2)),
    ]
    asked = [Request(scaffold=one_, given=one(lm, one_, "Why?", DOCUMENT), longest=5) for one_ in scaffolds]
    run = scheduler(lm)
    results = ended(run, [run.submit(request) for request in asked])
    check(lm, asked, results)
    assert run.stats().misses == asked[0].given.embeds.shape[1] + len(scaffolds) - 1


def test_a_connector_that_has_changed_is_not_taken_for_what_it_was(lm):
    scaffold = Recursion(lm, RecursionShape(layers=1))
    run = scheduler(lm)
    request = Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[0]), longest=5)
    for _ in range(2):
        check(lm, [request], ended(run, [run.submit(request)]))
        with torch.no_grad():
            for weight in scaffold.connectors.parameters():
                weight.mul_(1.7)


def test_texts_that_are_not_used_are_dropped_first(lm):
    """A bound for about two of three texts: the one that is asked again stays."""
    texts = [DOCUMENT[:50] + word for word in ("one", "two", "six")]
    asked = [Request(scaffold=Bare(), given=one(lm, Bare(), text[::-1]), longest=1) for text in texts]
    need = scheduler(lm)._pool
    room = max(need.bytes_for([_work(lm, request).demand], [_work(lm, request).demand]) for request in asked)
    size = asked[0].given.embeds.shape[1] * (need.column_bytes + 4 * lm.width)
    run = scheduler(lm, memory_bytes=room + int(2.5 * size))
    for number in (0, 1, 0, 2, 0, 1):
        check(lm, [asked[number]], ended(run, [run.submit(asked[number])]))
    found = [request.given.embeds.shape[1] for request in asked]
    assert run.stats().hits >= 2 * found[0] - 8
    assert run.stats().misses >= found[1] * 2 + found[2] - 12


def test_texts_that_begin_alike_and_are_read_together_are_dropped_in_any_order(lm):
    """Their first keys are one text's; dropping the other must not look for them."""
    run = scheduler(lm, memory_bytes=400_000)
    pair = [Request(scaffold=Bare(), given=one(lm, Bare(), text), longest=2) for text in (TEXTS[1], "Name a film.")]
    for again in range(3):
        check(lm, pair[again:] + pair, ended(run, [run.submit(request) for request in pair[again:] + pair]))
        for number in range(40):
            other = one(lm, Bare(), f"{number} {DOCUMENT[number:]}")
            ended(run, [run.submit(Request(scaffold=Bare(), given=other, longest=1))])
    assert run.stats().failed == 0
    assert set(run._pool.texts._by_key.values()) <= set(run._pool.texts._parts.values())


def test_whoever_waits_is_told_even_if_giving_back_memory_fails(lm, monkeypatch):
    run = scheduler(lm)
    ticket = run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=2))

    def fails(_needed):
        raise ZeroDivisionError

    while not run._rows:
        run.step()
    monkeypatch.setattr(run._pool, "reserve", fails)
    with pytest.raises(ZeroDivisionError):
        ended(run, [ticket])
    assert len(tokens(ticket.result(0))[0]) == 2


def _work(lm, request):
    return Work.of(request, None, lm)


# The bound


def test_requests_wait_for_memory_and_none_is_lost(lm):
    asked = list(requests(lm, [Bare(), SoftPrompt(from_vocabulary(lm)(6))] * 6, longest=8))
    need = scheduler(lm)._pool
    most = max(need.bytes_for([_work(lm, request).demand], [_work(lm, request).demand]) for request in asked)
    run = scheduler(lm, memory_bytes=int(1.3 * most))
    tickets = [run.submit(request) for request in asked]
    run.step()
    assert 1 <= run.stats().running < 12
    assert run.stats().waiting == 12 - run.stats().running
    check(lm, asked, ended(run, tickets))


def test_what_can_never_be_answered_is_refused_with_both_numbers(lm):
    given = one(lm, Bare(), TEXTS[0])
    run = scheduler(lm, memory_bytes=1000, rows=4, queue=1)
    with pytest.raises(PoolTooSmall, match=r"needs [\d,]+ bytes for keys and values, the pool has 1,000"):
        run.submit(Request(scaffold=Bare(), given=given, longest=8))
    run = scheduler(lm, rows=4, queue=1)
    with pytest.raises(ContextFull, match="needs 1007 positions, the model has room for 128"):
        run.submit(Request(scaffold=Bare(), given=given, longest=1007 - given.embeds.shape[1]))
    with pytest.raises(UsageError, match="5 continuations are asked for at once, and the scheduler has 4 rows"):
        run.submit(Request(scaffold=Bare(), given=given, longest=8, count=5))
    ticket = run.submit(Request(scaffold=Bare(), given=given, longest=2))
    with pytest.raises(QueueFull, match="all 1 places of the queue are taken"):
        run.submit(Request(scaffold=Bare(), given=given, longest=2))
    ended(run, [ticket])
    for wrong in ({"memory_bytes": 0}, {"rows": 0}, {"prefill_tokens": 0}, {"queue": -1}):
        with pytest.raises(UsageError, match="must be at least 1, got"):
            Scheduler(lm, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stops": "abc"}, "the stop texts are 'abc': give a list"),
        ({"stops": ("",)}, "none of them empty"),
        ({"longest": 0}, "longest and count must be at least 1, got 0 and 1"),
        ({"count": 0}, "longest and count must be at least 1, got 4 and 0"),
        ({"continuations": ((),)}, "a continuation to score has no token"),
        ({"draws": torch.rand(1, 4)}, "draws sample tokens, and temperature 0 chooses"),
        ({"given": ScaffoldInput(torch.zeros(2, 3, 32), None, (0, 0))}, "a request is one row without padding, got 2"),
        ({"given": ScaffoldInput(torch.zeros(1, 0, 32), None, (0,))}, "there is no token to continue"),
    ],
)
def test_requests_that_make_no_sense_are_refused(lm, wrong, message):
    with pytest.raises(UsageError, match=message):
        Request(**{"scaffold": Bare(), "given": one(lm, Bare(), TEXTS[0]), "longest": 4, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"top_p": 2.0}, "top_p must be above 0"),
        ({"seed": 1 << 70}, "seed must be between"),
        ({"presence_penalty": float("nan")}, "presence_penalty must be a number, got nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        ({"logprobs": -1}, "logprobs must be at least 0"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        SamplingParameters(**wrong)


# What goes wrong with one stays with it


class Broken(Scaffold):
    """Fails in a way of its own, after some tokens."""

    length = 0

    def __init__(self, how, after=0):
        super().__init__()
        self.how, self.after = how, after

    def program(self, given, memory=None):
        begins = memory.single.seen > self.after
        embeds = given.embeds * torch.nan if begins and self.how == "poison" else given.embeds
        states = yield Pass(embeds, given.mask, memory.single)
        if memory.single.seen <= self.after:
            return states
        if self.how == "raises":
            raise ZeroDivisionError("by nothing")
        if self.how == "asks":
            yield "a pass, please"
        if self.how == "width":
            yield Pass(given.embeds[..., :3], None, memory.single)
        if self.how == "rows":
            yield Pass(given.embeds.expand(2, -1, -1), None, memory.single)
        return {"nan": states * torch.nan, "nothing": None, "poison": states}[self.how]

    def description(self):
        return {}

    rebuilt = new = classmethod(lambda cls, *_: cls("raises"))


FAULTS = {
    "raises": "the scaffold failed (ZeroDivisionError: by nothing)",
    "asks": "yielded a str: it can yield Pass, Encode and Blocks",
    "width": "asked for Pass with vectors of shape (1, ",
    "rows": "asked for Pass with vectors of shape (2, ",
    "nan": "the scaffold's states are no numbers",
    "nothing": "returned states of shape NoneType",
    "poison": "the scaffold's states are no numbers",
}


@pytest.mark.parametrize(
    ("how", "after"), [*((how, 22) for how in FAULTS), ("raises", 0), ("width", 0), ("nothing", 0)]
)
def test_a_scaffold_that_fails_takes_nobody_with_it(lm, how, after):
    good = list(requests(lm, [Bare(), Recursion(lm, RecursionShape(layers=1)), SoftPrompt(from_vocabulary(lm)(4))], 12))
    bad = Broken(how, after)
    run = scheduler(lm)
    failing = run.submit(Request(scaffold=bad, given=one(lm, bad, TEXTS[0]), longest=60))
    tickets = [run.submit(request) for request in good]
    while run.step():
        pass
    check(lm, good, [ticket.result(0) for ticket in tickets])
    with pytest.raises(UsageError) as caught:
        failing.result(0)
    assert FAULTS[how] in str(caught.value)
    assert (run.stats().failed, run.stats().finished) == (1, 4)
    with pytest.raises(UsageError):
        list(failing)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mixtral"])
def test_nothing_of_a_scaffold_of_nan_stays(tiny_lm, family):
    """Rows that come later use the same places, and are longer or shorter."""
    lm = tiny_lm(family)
    prompt = SoftPrompt(torch.full((3, lm.width), torch.nan), Placement.SUFFIX)
    late = Recursion(lm, RecursionShape(layers=1))
    run = scheduler(lm, rows=4)
    asked = list(requests(lm, [Bare(), Bare(), late, Bare(), late], 12))
    bad = [prompt, Broken("poison", 32), Broken("poison", 30)]
    failing = [run.submit(Request(scaffold=one_, given=one(lm, one_, TEXTS[2]), longest=30)) for one_ in bad]
    tickets = [run.submit(request) for request in asked]
    while run.step():
        pass
    check(lm, asked, [ticket.result(0) for ticket in tickets])
    for ticket in failing:
        with pytest.raises(RequestFailed, match="no numbers"):
            ticket.result(0)


def test_a_scaffold_that_forgets_the_text_is_refused(lm):
    class Forgetful(Broken):
        def program(self, given, memory=None):
            return (yield Pass(given.embeds, given.mask))

    scaffold = Forgetful("")
    run = scheduler(lm)
    ticket = run.submit(Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[0]), longest=3))
    assert not run.step() or not run.step()
    with pytest.raises(UsageError, match="leaves its memory empty"):
        ticket.result(0)


def test_a_cancelled_request_frees_its_rows_in_the_next_step(lm):
    given = one(lm, Bare(), TEXTS[0])
    run = scheduler(lm, rows=3)
    ticket = run.submit(Request(scaffold=Bare(), given=given, longest=50, shortest=50, count=3))
    waiting = run.submit(Request(scaffold=Bare(), given=given, longest=2))
    gone = run.submit(Request(scaffold=Bare(), given=given, longest=2))
    for _ in range(4):
        run.step()
    assert (run.stats().running, run.stats().waiting) == (1, 2)
    ticket.cancel()
    gone.cancel()
    run.step()
    assert (run.stats().running, run.stats().waiting) == (1, 0)
    left = ticket.result(0)
    whole = generate(lm, Bare(), given, longest=50, shortest=50)[0]
    assert [branch.finish for branch in left.branches] == ["cancelled"] * 3
    assert all(0 < len(branch.ids) < 6 and branch.ids == whole[: len(branch.ids)] for branch in left.branches)
    assert gone.result(0).branches[0].ids == []
    ended(run, [waiting])


def test_a_deadline_ends_a_request_with_what_it_has(lm, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("shoulders.engine.scheduler.time", SimpleNamespace(monotonic=lambda: clock.now))
    given = one(lm, Bare(), TEXTS[0])
    run = scheduler(lm)
    late = run.submit(Request(scaffold=Bare(), given=given, longest=2, deadline=99.0))
    soon = run.submit(Request(scaffold=Bare(), given=given, longest=100, shortest=100, deadline=101.0))
    for _ in range(10):
        assert run.step()
    clock.now = 101.0
    assert not run.step()
    assert tokens(late.result(0)) == [[]]
    (branch,) = soon.result(0).branches
    assert 0 < len(branch.ids) < 100
    assert branch.finish == "deadline"
    assert branch.events[-1].finish == "deadline"


# What is chosen


def test_events_tell_what_the_result_tells(lm):
    given = one(lm, Bare(), TEXTS[0])
    run = scheduler(lm)
    request = Request(scaffold=Bare(), given=given, longest=6, sampling=SamplingParameters(logprobs=3))
    seen, heard = run.submit(request), run.submit(request)
    run.step()
    told = []
    heard.on_event(told.append)
    (completed, other) = ended(run, [seen, heard])
    (branch,) = completed.branches
    events = list(seen)
    assert tuple(events) == branch.events
    assert told == [*other.branches[0].events, None]
    assert [event.token for event in events] == [*branch.ids, None]
    assert sum(event.log_probability for event in events) == pytest.approx(branch.log_probability)
    with torch.no_grad():
        text = torch.cat([given.embeds, lm.embed(torch.tensor([branch.ids]))], dim=1)
        shares = lm.logits(lm.states(text))[0, given.embeds.shape[1] - 1 :].log_softmax(-1)
    for event, wanted in zip(events[:-1], shares, strict=False):
        best = wanted.topk(3)
        assert [token for token, _ in event.top] == best.indices.tolist()
        assert [value for _, value in event.top] == pytest.approx(best.values.tolist(), rel=1e-3, abs=1e-3)
        assert event.log_probability == pytest.approx(wanted[event.token].item(), rel=1e-3, abs=1e-3)


def test_a_listener_that_raises_cancels_its_request(lm):
    run = scheduler(lm)
    ticket = run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=50, shortest=50))
    ticket.on_event(lambda _: 1 / 0)
    (completed,) = ended(run, [ticket])
    assert completed.branches[0].finish == "cancelled"
    assert len(completed.branches[0].ids) < 4


def test_stop_texts_and_ends(lm):
    rows = [one(lm, Bare(), text) for text in TEXTS]
    found = [(given, generate(lm, Bare(), given, longest=9, shortest=9)[0]) for given in rows]
    given, whole = max(found, key=lambda pair: len(lm.text(pair[1][:7])))
    stop = lm.text(whole)[2:4]
    run = scheduler(lm)
    asked = [
        Request(scaffold=Bare(), given=given, longest=9, stops=stops, shortest=shortest)
        for stops, shortest in (((stop,), 9), ((), 9), ((), 0))
    ]
    stopped, longer, plain = ended(run, [run.submit(request) for request in asked])
    assert tokens(stopped) == generate(lm, Bare(), given, longest=9, shortest=9, stops=[stop])
    assert (stopped.branches[0].finish, len(stopped.branches[0].ids) < 9) == ("stop", True)
    assert (tokens(longer), longer.branches[0].finish) == ([whole], "length")
    assert tokens(plain) == generate(lm, Bare(), given, longest=9)


def test_branches_share_one_reading_and_draw_for_themselves(any_lm):
    """As the direct driver samples them, whatever else is in the batch and in which order."""
    lm = any_lm
    prompt = Recursion(lm, RecursionShape(layers=1), SoftPrompt(from_vocabulary(lm)(4)))
    given = one(lm, prompt, TEXTS[2])
    draws = torch.rand(5, 6, dtype=torch.float64)
    (wanted,) = sampled(lm, prompt, given, draws[None], temperature=0.8)
    run = scheduler(lm)
    how = SamplingParameters(temperature=0.8)
    other = run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[1]), longest=9, shortest=9))
    run.step()
    ticket = run.submit(Request(scaffold=prompt, given=given, longest=6, count=5, sampling=how, draws=draws))
    (completed, _) = ended(run, [ticket, other])
    assert tokens(completed) == [one_.ids for one_ in wanted]
    for branch, one_ in zip(completed.branches, wanted, strict=True):
        assert branch.log_probability == pytest.approx(one_.log_probability, rel=1e-3, abs=1e-3)
    assert completed.passes == 2 + 2 * sum(
        len(branch.events) - 2 + (len(branch.ids) < 6) for branch in completed.branches
    )


def test_a_seed_gives_the_same_sample_whatever_else_runs(lm):
    def ask(run, seed, **settings):
        how = SamplingParameters(temperature=1.5, top_k=40, top_p=0.9, seed=seed, **settings)
        return run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=8, count=2, sampling=how))

    run = scheduler(lm)
    (first,) = ended(run, [ask(run, 7)])
    several_ = ended(run, [ask(run, 8), ask(run, 7, presence_penalty=0.0), ask(run, None), ask(run, None)])
    assert tokens(several_[1]) == tokens(first)
    assert len({str(tokens(one_)) for one_ in several_}) == 4
    assert tokens(first)[0] != tokens(first)[1]


def test_penalties_change_what_is_likeliest_as_they_say(lm):
    """Against a decode by hand, on logits that are changed as vLLM and OpenAI document it."""
    given, ids = one(lm, Bare(), TEXTS[0]), lm.ids(TEXTS[0])
    settings = [
        {"presence_penalty": 3.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 3.0},
        {"presence_penalty": -2.0, "frequency_penalty": 1.0, "repetition_penalty": 0.5},
    ]
    run = scheduler(lm)
    asked = [
        Request(
            scaffold=Bare(), given=given, ids=tuple(ids), longest=8, shortest=8, sampling=SamplingParameters(**one_)
        )
        for one_ in [*settings, {}]
    ]
    results = ended(run, [run.submit(request) for request in asked])
    for request, completed in zip(asked, results, strict=True):
        how, made = request.sampling, []
        for _ in range(8):
            with torch.no_grad():
                logits = lm.logits(lm.states(lm.embed(torch.tensor([[*ids, *made]]))))[0, -1]
            for token in {*ids, *made}:
                value = logits[token]
                logits[token] = value * how.repetition_penalty if value < 0 else value / how.repetition_penalty
            for token in set(made):
                logits[token] -= how.presence_penalty + how.frequency_penalty * made.count(token)
            logits[list(lm.ends)] = -torch.inf
            made.append(int(logits.argmax()))
        assert tokens(completed) == [made]
    assert len({str(tokens(completed)) for completed in results}) > 2


def test_continuations_are_scored_as_the_direct_driver_scores_them(any_lm):
    lm = any_lm
    options = ((3, 5, 9), (7,), (3, 5), tuple(range(20, 30)))
    scaffolds = [Bare(), SoftPrompt(from_vocabulary(lm)(4)), Recursion(lm, RecursionShape(layers=1))]
    run = scheduler(lm, rows=2)
    tickets = [
        run.submit(Request(scaffold=one_, given=one(lm, one_, TEXTS[2]), continuations=options)) for one_ in scaffolds
    ]
    for scaffold, completed in zip(scaffolds, ended(run, tickets), strict=True):
        (wanted,) = score(lm, scaffold, one(lm, scaffold, TEXTS[2]), [list(map(list, options))])
        assert [one_.log_likelihood for one_ in completed.scores] == pytest.approx(
            [one_.log_likelihood for one_ in wanted], rel=1e-3, abs=1e-3
        )
        assert [one_.greedy for one_ in completed.scores] == [one_.greedy for one_ in wanted]
        assert completed.branches == ()


def test_many_continuations_hold_up_nobody_else(lm):
    """A few are scored in a step, while others generate; a request that is cancelled is scored no further."""
    options = tuple((number, 5) for number in range(3, 23))
    run = scheduler(lm)
    scored, left = (
        run.submit(Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[2]), continuations=options)) for _ in range(2)
    )
    beside = Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=6)
    ticket, made = run.submit(beside), 0
    while not any(work.scores for work in run._active):
        run.step()
    left.cancel()
    while not scored.done:
        made += bool(run._rows)
        run.step()
    assert made
    check(lm, [beside], [ended(run, [ticket])[0]])
    (wanted,) = score(lm, Bare(), one(lm, Bare(), TEXTS[2]), [list(map(list, options))])
    assert [one_.log_likelihood for one_ in scored.result(0).scores] == pytest.approx(
        [one_.log_likelihood for one_ in wanted], rel=1e-3, abs=1e-3
    )
    assert left.result(0).scores == ()


def test_a_batch_is_taken_apart_into_rows(lm, tiny_encoder, questions):
    scaffold = InputPrompt(tiny_encoder("bert"), lm, SMALL, placement=Placement.SUFFIX)
    whole = question_batch([encode(question, lm) for question in questions], lm, scaffold)
    for row, question in zip(rows_of(whole), questions, strict=True):
        wanted = one(lm, scaffold, question.text)
        assert torch.equal(row.embeds, wanted.embeds)
        assert row.slot == wanted.slot
        assert torch.equal(row.source.ids, wanted.source.ids)
        assert row.mask is None


# Threads


def test_many_threads_ask_at_once(lm, tiny_encoder):
    asked = list(requests(lm, several(lm, tiny_encoder)))
    results = {}

    def ask(number):
        results[number] = run.submit(asked[number], wait=True).result(60)

    with scheduler(lm, queue=3, rows=5) as run:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        streamed = run.submit(asked[0])
        assert [event.token for event in streamed][:-1] == alone(lm, asked[0]).ids
    check(lm, asked, [results[number] for number in range(len(asked))])


def test_its_thread_has_the_cores_of_the_one_that_started_it(lm, monkeypatch):
    cores, passed = torch.get_num_threads(), Bare.program

    def told(scaffold, given, memory=None):
        found.append(torch.get_num_threads())
        return passed(scaffold, given, memory)

    found: list[int] = []
    monkeypatch.setattr(Bare, "program", told)
    asked = next(requests(lm, [Bare()], 2))
    try:
        for wanted in (3, 1):
            torch.set_num_threads(wanted)
            with Scheduler(lm) as run:
                torch.set_num_threads(2)
                run.submit(asked).result(30)
            assert found.pop() == wanted
    finally:
        torch.set_num_threads(cores)


def test_stopping_finishes_what_runs_or_ends_it(lm):
    request = Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=30, shortest=30)
    run = scheduler(lm).start()
    tickets = [run.submit(request) for _ in range(3)]
    run.stop()
    assert all(len(ticket.result(0).branches[0].ids) == 30 for ticket in tickets)
    with pytest.raises(Stopped, match="the scheduler has been stopped"):
        run.submit(request)
    run = scheduler(lm)
    ticket = run.submit(request)
    run.step()
    run.stop(finish=False)
    with pytest.raises(Stopped, match="stopped before the request was answered"):
        ticket.result(0)
    with pytest.raises(TimeoutError):
        scheduler(lm).submit(request).result(0.01)


def test_a_thread_that_dies_ends_its_requests_and_refuses_new_ones(lm, monkeypatch):
    request = Request(scaffold=Bare(), given=one(lm, Bare(), TEXTS[0]), longest=30, shortest=30)
    run = scheduler(lm, rows=1)
    with pytest.raises(UsageError, match="does not run"):
        run.check_runs()
    tickets = [run.submit(request) for _ in range(3)]  # one runs, two wait
    steps = run.step

    def dying():
        if run.stats().tokens > 2:
            raise SystemExit  # no step catches it
        return steps()

    monkeypatch.setattr(run, "step", dying)
    run.start()
    for ticket in tickets:
        with pytest.raises(Stopped, match="thread has ended"):
            ticket.result(10)
    with pytest.raises(Stopped):
        run.submit(request)
    with pytest.raises(UsageError, match="thread has ended"):
        run.check_runs()
    assert (run.stats().running, run.stats().waiting) == (0, 0)


def test_many_requests_that_come_at_once_are_read_at_once_beside_one_that_runs(lm):
    asked = [Request(scaffold=Bare(), given=one(lm, Bare(), text), longest=4) for text in TEXTS[:4]]
    lengths = [request.given.embeds.shape[1] for request in asked]
    run = scheduler(lm, prefill_tokens=-(-sum(lengths[1:]) // 3))
    tickets = [run.submit(asked[0])]
    run.step()
    tickets += [run.submit(request) for request in asked[1:]]
    run.step()
    assert run.stats().misses == sum(lengths)
    check(lm, asked, ended(run, tickets))


def test_texts_share_a_forward_unless_their_padding_costs_more(lm, monkeypatch):
    monkeypatch.setattr(reading, "PADDING", 3)
    whole = one(lm, Bare(), TEXTS[2])
    lengths = [9, 8, 8, 8, 4]  # padded by 1, 1 and 1, and then by too much
    asked = [
        Request(scaffold=Bare(), given=replace(whole, embeds=whole.embeds[:, start : start + length]), longest=1)
        for start, length in enumerate(lengths)
    ]
    run = scheduler(lm, prefill_tokens=64)
    tickets = [run.submit(request) for request in asked]
    check(lm, asked, ended(run, tickets))
    assert run.stats().forwards == 2


def test_answering_goes_over_a_scheduler(lm, questions):
    """Greedy answers, samples, choices and streams of an answerer, from several threads, are those without one."""
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    direct = ModelAnswerer(lm, scaffold, Answering(6))
    choices = ["yes", "no", "perhaps not"]

    def everything(answerer):
        texts = [one_.text for one_ in (*answerer.ask_all(questions), *answerer.sample(questions[0], Sampling(40)))]
        return texts, answerer.rank(questions[1], choices), "".join(answerer.stream(questions[3]))

    (texts, scores, streamed), found = everything(direct), []
    with scheduler(lm, rows=8) as run:
        threads = [threading.Thread(target=lambda: found.append(everything(direct.over(run)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    for one_ in found:
        assert (one_[0], one_[2]) == (texts, streamed)
        assert one_[1] == pytest.approx(scores, rel=1e-3)
    assert run.stats().hits > 0
    with pytest.raises(UsageError, match="the scheduler does not run: start it"):
        direct.over(scheduler(lm)).ask(questions[0])


def test_another_model_is_asked_directly(lm, tiny_lm, questions):
    """A rival with weights of its own cannot share the forwards of the backbone."""
    other = tiny_lm("gpt2")
    assert isinstance(other, FrozenLM)
    given = one(other, Bare(), TEXTS[0])
    with scheduler(lm) as run:
        found = run.likeliest(other, Bare(), given, longest=4)
    assert found == likeliest(other, Bare(), given, longest=4)
    assert run.stats().steps == 0
