"""Texts that are kept with room after them: what comes next is written there, by one memory at a time."""

import pytest
import torch

from mixed import one
from shoulders.backbone.caches import PassMemory, whole_cache
from shoulders.engine import pool
from shoulders.engine.decode import likeliest
from shoulders.engine.pool import Known, Pool
from shoulders.engine.requests import Request, SamplingParameters
from shoulders.engine.scheduler import Scheduler
from shoulders.records import KeysValues, Placement
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

DOCUMENT = "The sun is a star. The moon is not. A dog barks and a cat does not. Paris is the capital of France. "
KEYS = [bytes([number]) for number in range(8)]


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """Rooms after short texts, half as long as these."""
    monkeypatch.setattr(pool, "ROOMY", 4)
    monkeypatch.setattr(pool, "SPARE", 2)


@pytest.fixture
def given(monkeypatch):
    """For each time that a room is asked for, whether it is given."""
    found = []
    known_room = Known.room

    def room(self, columns):
        one_ = known_room(self, columns)
        found.append(one_ is not None)
        return one_

    monkeypatch.setattr(Known, "room", room)
    return found


def suffix_requests(lm, number, **how):
    prompts = [SoftPrompt(from_vocabulary(lm, seed=seed)(4), Placement.SUFFIX) for seed in range(number)]
    return [Request(scaffold=prompt, given=one(lm, prompt, "Why?", DOCUMENT), longest=5, **how) for prompt in prompts]


def run_all(run, asked):
    tickets = [run.submit(request) for request in asked]
    while run.step():
        pass
    return [ticket.result(0) for ticket in tickets]


def check_alone(lm, asked, results):
    for request, completed in zip(asked, results, strict=True):
        assert completed.branches[0].ids == likeliest(lm, request.scaffold, request.given, longest=5)[0].ids


@pytest.fixture
def kept(lm):
    """A pool with a text of 8 columns, what was kept of it, and its keys and values."""
    own = Pool(lm, 1 << 24)
    memory = PassMemory()
    memory.whole = True
    states = lm.states(lm.embed(torch.arange(8)[None]), memory=memory)
    return own.keep(Known(), KEYS, memory, states), memory.keys_values(lm.config)


def after(lm, known, room):
    """A memory of what is known, with room."""
    memory = PassMemory()
    memory.whole = True
    memory.add_known(known.read()[0], known.length, lm.config, room)
    return memory


def read(lm, memory, *tokens):
    return lm.states(lm.embed(torch.tensor([tokens])), memory=memory)


def same_text(lm, memory, *tokens):
    """Whether a memory holds what reading these tokens at once gives."""
    whole = PassMemory(whole_cache(lm.config))
    read(lm, whole, *tokens)
    pairs = zip(memory.keys_values(lm.config).layers, whole.keys_values(lm.config).layers, strict=True)
    return all(torch.allclose(found, wanted, atol=1e-5) for one_ in pairs for found, wanted in zip(*one_, strict=True))


def test_one_after_the_other_writes_behind_the_document(lm, given):
    asked = suffix_requests(lm, 3)
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512)
    results = [run_all(run, [request])[0] for request in asked]
    check_alone(lm, asked, results)
    assert [completed.cached for completed in results] == [0, *[asked[0].given.embeds.shape[1]] * 2]
    assert given == [True, True]
    check_alone(lm, asked, run_all(run, asked))  # all are known now, to the last column


def test_at_the_same_time_one_has_the_room(lm, given):
    asked = suffix_requests(lm, 4)
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512)
    check_alone(lm, asked[:1], run_all(run, asked[:1]))
    check_alone(lm, asked[1:], run_all(run, asked[1:]))
    assert given == [True, False, False]


def test_branches_after_a_document_draw_as_they_do_alone(lm):
    sampling = SamplingParameters(temperature=1.0, seed=3)
    asked = suffix_requests(lm, 3, count=3, sampling=sampling)
    run, another = (Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512) for _ in range(2))
    one_by_one = [run_all(run, [request])[0] for request in asked]
    together = run_all(another, asked)
    for some, others in zip(one_by_one, together, strict=True):
        assert [branch.ids for branch in some.branches] == [branch.ids for branch in others.branches]


@torch.no_grad()
def test_what_comes_next_is_written_in_place_and_the_text_stays(lm, kept):
    known, text = kept
    room = known.room(3)
    memory = after(lm, known, room)
    read(lm, memory, 9, 10)
    read(lm, memory, 11)
    assert same_text(lm, memory, *range(8), 9, 10, 11)
    layers = zip(memory.keys_values(lm.config).layers, known.read()[0].layers, text.layers, strict=True)
    for (keys, _), (kept_keys, _), (before, _) in layers:
        assert keys.data_ptr() == kept_keys.data_ptr()
        assert torch.equal(kept_keys, before)
    read(lm, memory, 12, 13)  # there are 4 free columns
    assert same_text(lm, memory, *range(8), 9, 10, 11, 12, 13)
    assert memory.keys_values(lm.config).layers[0][0].data_ptr() != known.read()[0].layers[0][0].data_ptr()


@torch.no_grad()
@pytest.mark.parametrize("begun", [False, True])
def test_a_branch_keeps_its_columns_and_the_room(lm, kept, begun):
    """Whether it branches off before the first column is written, or after."""
    known, _ = kept
    memory = after(lm, known, known.room(4))
    before = (9,) if begun else ()
    if begun:
        read(lm, memory, *before)
    branch = memory.branch()
    read(lm, memory, 10, 11)
    assert same_text(lm, memory, *range(8), *before, 10, 11)
    read(lm, branch, 12, 13)
    assert same_text(lm, branch, *range(8), *before, 12, 13)
    assert same_text(lm, memory, *range(8), *before, 10, 11)
    del memory
    assert (known.room(4) is None) == begun  # a branch that holds columns of the room keeps it
    del branch
    assert known.room(4) is not None


@torch.no_grad()
def test_rows_that_are_selected_leave_the_room(lm, kept):
    known, _ = kept
    memory = after(lm, known, known.room(4))
    read(lm, memory, 9)
    memory.select(torch.tensor([0, 0]))
    lm.states(lm.embed(torch.tensor([[10], [11]])), memory=memory)
    for row, token in enumerate((10, 11)):
        one_row = memory.branch()
        one_row.select(torch.tensor([row]))
        assert same_text(lm, one_row, *range(8), 9, token)


def test_there_is_no_room_in_the_middle_of_a_text_nor_for_more_than_there_is(kept):
    known, _ = kept
    assert Known(5, known.part).room(1) is None
    assert known.room(5) is None
    assert known.room(4) is not None
    assert Known().room(1) is None


@torch.no_grad()
def test_columns_after_a_text_have_no_room_of_their_own(lm):
    own = Pool(lm, 1 << 24)
    memory = PassMemory()
    memory.whole = True
    states = lm.states(lm.embed(torch.arange(14)[None]), memory=memory)
    text = own.keep(Known(), KEYS, memory, states[:, :8], later=6)
    assert text is not None
    rest = own.keep(text, [b"a", b"b", b"c", b"d", b"e", b"f"], memory, states[:, 8:])
    assert rest is not None
    assert rest.room(1) is None
    found, last = rest.read()
    assert torch.equal(last, states)
    wanted = memory.keys_values(lm.config)
    assert isinstance(found, KeysValues)
    for some, others in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(some[0], others[0])
        assert torch.equal(some[1], others[1])
