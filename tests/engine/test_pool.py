"""Texts that are kept with room after them: what comes next is written there, by one memory at a time."""

import gc

import pytest
import torch

from mixed import one
from shoulders.backbone.caches import PassMemory, whole_cache
from shoulders.engine import pool
from shoulders.engine.decode import likeliest
from shoulders.engine.pool import Known, Pool
from shoulders.engine.requests import Request, SamplingParameters
from shoulders.engine.scheduler import Scheduler
from shoulders.records import Placement
from shoulders.scaffolds.deep_prompt import DeepPrompt
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
    read = Known.read

    def noted(self, free=0):
        known, room = read(self, free)
        if free:
            found.append(room is not None)
        return known, room

    monkeypatch.setattr(Known, "read", noted)
    return found


def room_of(known, columns):
    return known.read(columns)[1]


def suffix_requests(lm, number, document=DOCUMENT, **how):
    prompts = [SoftPrompt(from_vocabulary(lm, seed=seed)(4), Placement.SUFFIX) for seed in range(number)]
    return [
        Request(scaffold=prompt, given=one(lm, prompt, "Why?", document), **{"longest": 5, **how}) for prompt in prompts
    ]


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
    return own.keep(Known(), KEYS, memory, states, later=0, ends=True), memory.keys_values(lm.config)


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
    room = room_of(known, 3)
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
    memory = after(lm, known, room_of(known, 4))
    before = (9,) if begun else ()
    if begun:
        read(lm, memory, *before)
    branch = memory.branch()
    read(lm, memory, 10, 11)
    assert same_text(lm, memory, *range(8), *before, 10, 11)
    del memory
    assert (room_of(known, 4) is None) == begun  # a branch that holds columns of the room keeps it
    read(lm, branch, 12, 13)  # which copies them
    assert room_of(known, 4) is not None
    assert same_text(lm, branch, *range(8), *before, 12, 13)


@torch.no_grad()
def test_a_branch_and_what_it_branched_off_go_on_side_by_side(lm, kept):
    known, _ = kept
    memory = after(lm, known, room_of(known, 4))
    read(lm, memory, 9)
    branch = memory.branch()
    for token in (10, 11):
        read(lm, memory, token)
        read(lm, branch, token + 5)
    assert same_text(lm, memory, *range(8), 9, 10, 11)
    assert same_text(lm, branch, *range(8), 9, 15, 16)


@torch.no_grad()
def test_rows_that_are_selected_leave_the_room(lm, kept):
    known, _ = kept
    memory = after(lm, known, room_of(known, 4))
    read(lm, memory, 9)
    memory.select(torch.tensor([0, 0]))
    lm.states(lm.embed(torch.tensor([[10], [11]])), memory=memory)
    for row, token in enumerate((10, 11)):
        one_row = memory.branch()
        one_row.select(torch.tensor([row]))
        assert same_text(lm, one_row, *range(8), 9, token)


def test_there_is_no_room_in_the_middle_of_a_text_nor_for_more_than_there_is(kept):
    known, _ = kept
    assert room_of(Known(5, known.part), 1) is None
    assert room_of(known, 5) is None
    assert room_of(known, 4) is not None


@torch.no_grad()
def test_columns_after_a_text_are_joined_in_a_room_of_their_own(lm):
    own = Pool(lm, 1 << 24)
    memory = PassMemory()
    memory.whole = True
    states = lm.states(lm.embed(torch.arange(14)[None]), memory=memory)
    text = own.keep(Known(), KEYS, memory, states[:, :8], later=6, ends=True)
    assert text is not None
    keys = [*KEYS, b"a", b"b", b"c", b"d", b"e", b"f"]
    rest = own.keep(text, keys, memory, states[:, 8:], later=0, ends=True)
    assert rest is not None
    assert torch.equal(rest.states(), states)
    wanted = memory.keys_values(lm.config)
    for free in (0, 2):
        found, room = rest.read(free)
        assert (room is not None) == bool(free)
        for some, others in zip(found.layers, wanted.layers, strict=True):
            assert torch.equal(some[0], others[0])
            assert torch.equal(some[1], others[1])
    one_, another = (after(lm, rest, room_of(rest, 2)) for _ in range(2))
    read(lm, one_, 3, 4)
    read(lm, another, 5, 6)
    assert same_text(lm, one_, *range(14), 3, 4)
    assert same_text(lm, another, *range(14), 5, 6)


def spare(run):
    """Free columns after each text that is kept."""
    parts = run._pool.texts._parts.values()
    return [part.layers.layers[0][0].shape[2] - len(part.keys) for part in parts]


def test_a_room_is_free_as_soon_as_its_request_has_ended(lm, given):
    """Also if it ends with its first token, and no garbage is collected."""
    asked = suffix_requests(lm, 5, longest=1)
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512)
    gc.disable()
    try:
        for request in asked:
            run_all(run, [request])
    finally:
        gc.enable()
    assert given == [True] * 4


def test_documents_that_begin_alike_have_a_room_each(lm, given):
    other = DOCUMENT[:4] + DOCUMENT[:3:-1]
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512)
    for document in (DOCUMENT, other):
        asked = suffix_requests(lm, 3, document)
        check_alone(lm, asked, [run_all(run, [request])[0] for request in asked])
    assert given == [True, True, False, True, True]  # no room after the first words, which are those of the other
    parts = [part for part in run._pool.texts._parts.values() if len(part.keys) > 20]
    assert [part.before for part in parts] == [None, None]


def test_a_document_that_was_read_in_chunks_has_no_free_columns_in_its_middle(lm, given):
    asked = suffix_requests(lm, 3)
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=4)
    check_alone(lm, asked, [run_all(run, [request])[0] for request in asked])
    assert given == [True, True]
    assert not any(spare(run))


def test_after_a_prompt_in_every_layer_no_columns_are_kept_free(lm):
    deep = DeepPrompt.from_vocabulary(lm, length=5)
    request = Request(scaffold=deep, given=one(lm, deep, "Why?", DOCUMENT), longest=5)
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=512)
    for _ in range(2):
        check_alone(lm, [request], run_all(run, [request]))
    assert not any(spare(run))
