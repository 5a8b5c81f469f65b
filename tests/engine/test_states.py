"""States kept on disk: those of the model, computed once, and never wrong ones whatever happened to the files."""

import os
from pathlib import Path

import pytest
import torch

from processes import together
from shoulders.engine import precomputed as states_module
from shoulders.engine.precomputed import StateStore
from shoulders.errors import SaveFailed
from shoulders.store.cache import DATA, INDEX, MANIFEST

ROWS = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 13], [5, 9, 3, 4], [20], [30, 31, 32, 33, 34]]


@torch.no_grad()
def own(lm, row):
    return lm.states(lm.embed(torch.tensor([row])))[0]


def check(lm, found, rows):
    assert found.shape == (len(rows), max(map(len, rows)), lm.width)
    for states, row in zip(found, rows, strict=True):
        torch.testing.assert_close(states[: len(row)], own(lm, row), rtol=1e-4, atol=1e-5)
        assert not states[len(row) :].any()


@pytest.fixture
def passes(monkeypatch):
    """Counts the rows that go through a model."""
    from shoulders.backbone.frozen import FrozenLM

    counted, states = [], FrozenLM.states

    def counting(self, embeds, *rest):
        counted.append(embeds.shape[0])
        return states(self, embeds, *rest)

    monkeypatch.setattr(FrozenLM, "states", counting)
    return counted


def place(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_stored_states_are_the_models_own(any_lm, tmp_path):
    store = StateStore(tmp_path, any_lm)
    first = store.states(ROWS)
    check(any_lm, first, ROWS)
    again = StateStore(tmp_path, any_lm)
    assert torch.equal(again.states(ROWS), first)
    assert (store.computed, again.computed, again.damaged) == (len(ROWS), 0, 0)


def test_what_is_known_is_not_computed_again(lm, tmp_path, passes):
    store = StateStore(tmp_path, lm)
    store.states([ROWS[0], ROWS[1], ROWS[0]])
    assert passes == [2]
    store.states([ROWS[1], ROWS[2], ROWS[0]])
    assert passes == [2, 1]
    found = StateStore(tmp_path, lm).states(ROWS[:3])
    assert passes == [2, 1]
    check(lm, found, ROWS[:3])


def test_many_rows_are_computed_in_batches_of_similar_length(lm, tmp_path, passes, monkeypatch):
    monkeypatch.setattr(states_module, "POSITIONS_AT_ONCE", 8)
    found = StateStore(tmp_path, lm).states(ROWS)
    assert passes == [2, 1, 1, 1]
    check(lm, found, ROWS)


def test_another_backbone_and_another_type_have_a_place_of_their_own(tiny_lm, tmp_path):
    models = [tiny_lm("llama"), tiny_lm("llama", "bfloat16"), tiny_lm("gpt2")]
    kept = [StateStore(tmp_path, lm).states(ROWS) for lm in models]
    assert len(list(tmp_path.iterdir())) == 3
    for lm, states in zip(models, kept, strict=True):
        assert states.dtype == lm.dtype
        again = StateStore(tmp_path, lm)
        assert torch.equal(again.states(ROWS), states)
        assert again.computed == 0


@pytest.mark.filterwarnings("ignore:.*damaged rows.*computed anew")
@pytest.mark.parametrize("name", [DATA, INDEX])
def test_a_process_killed_while_it_writes_leaves_fewer_rows_and_no_wrong_ones(lm, tmp_path, name):
    """Cut at every entry, in the middle of entries, and at nothing; then written to and read again."""
    whole = tmp_path / "whole"
    for row in ROWS:
        StateStore(whole, lm).states([row])
    data, index = ((place(whole) / file).read_bytes() for file in (DATA, INDEX))
    for cut in range(0, len(data if name == DATA else index), 17 if name == INDEX else 997):
        folder = tmp_path / f"cut-{cut}"
        StateStore(folder, lm)
        (place(folder) / DATA).write_bytes(data[:cut] if name == DATA else data)
        (place(folder) / INDEX).write_bytes(index[:cut] if name == INDEX else index)
        store = StateStore(folder, lm)
        check(lm, store.states(ROWS[::-1]), ROWS[::-1])
        assert store.computed > 0
        again = StateStore(folder, lm)
        check(lm, again.states(ROWS), ROWS)
        assert (again.computed, again.damaged) == (0, 0)


def opened(folder: Path, lm):
    store = StateStore(folder, lm)
    return store, store.states(ROWS)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "told"), [(DATA, "1 damaged rows in "), (INDEX, "1 damaged entries of the index in ")]
)
def test_a_flipped_bit_is_told_of_and_its_row_computed_anew(lm, tmp_path, name, told):
    right = StateStore(tmp_path, lm).states(ROWS)
    size = (place(tmp_path) / name).stat().st_size
    for at in (0, size // 2, size - 1):
        flip(place(tmp_path) / name, at)
        with pytest.warns(UserWarning, match=told):
            store, found = opened(tmp_path, lm)
        torch.testing.assert_close(found, right)
        assert (store.damaged, store.computed) == (1, 1)
        again = StateStore(tmp_path, lm)
        torch.testing.assert_close(again.states(ROWS), right)
        assert (again.damaged, again.computed) == (0, 0)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"format": 0}'])
def test_a_store_whose_manifest_is_damaged_is_built_anew(lm, tmp_path, content):
    right = StateStore(tmp_path, lm).states(ROWS)
    manifest = place(tmp_path) / MANIFEST
    manifest.unlink() if content is None else manifest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"manifest\.json is damaged: its states are computed anew"):
        store = StateStore(tmp_path, lm)
    assert torch.equal(store.states(ROWS), right)
    assert store.computed == len(ROWS)
    assert StateStore(tmp_path, lm).states(ROWS[:1]).any()


@pytest.mark.filterwarnings("ignore:.*damaged rows.*computed anew")
def test_a_store_built_anew_while_another_process_uses_it(lm, tmp_path):
    old = StateStore(tmp_path, lm)
    old.states(ROWS)
    (place(tmp_path) / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="computed anew"):
        new = StateStore(tmp_path, lm)
    check(lm, new.states(ROWS[:2]), ROWS[:2])
    check(lm, old.states([*ROWS, [40, 41]]), [*ROWS, [40, 41]])
    check(lm, new.states([*ROWS, [40, 41]]), [*ROWS, [40, 41]])


def test_a_full_disk_is_named_and_nothing_stored_is_lost(lm, tmp_path, monkeypatch):
    StateStore(tmp_path, lm).states(ROWS[:2])
    store = StateStore(tmp_path, lm)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            SaveFailed, match=r"No space left .* is as it was before: free space .*\(training\.first_pass\)"
        ):
            store.states(ROWS)
    for one in (store, StateStore(tmp_path, lm)):
        check(lm, one.states(ROWS[:2]), ROWS[:2])
        assert one.computed == 0
    check(lm, store.states(ROWS), ROWS)


def test_a_folder_that_cannot_be_made_is_named(lm, tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SaveFailed, match=r"name another place \(training\.first_pass\)"):
            StateStore(folder, lm)
    assert (tmp_path / "file").read_text() == "kept"


FILL = """
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.precomputed import StateStore
model, folder, starts = arguments
store = StateStore(folder, FrozenLM.load(model, dtype="float32", device="cpu"))
for start in starts:
    store.states([[start + n % 7, n + 3, 5] for n in range(start, start + 8)])
"""


def test_processes_share_a_folder(lm, tmp_path):
    """Four at once, with rows of their own and rows that others have too."""
    numbers = [[(start + step) * 5 for step in range(12)] for start in (0, 4, 8, 2)]
    together(FILL, *((lm.name, tmp_path, own_numbers) for own_numbers in numbers))
    rows = [[start + n % 7, n + 3, 5] for start in range(0, 100, 5) for n in range(start, start + 8)]
    store = StateStore(tmp_path, lm)
    check(lm, store.states(rows), rows)
    assert (store.computed, store.damaged) == (0, 0)
    assert (place(tmp_path) / DATA).stat().st_size == len({tuple(row) for row in rows}) * 3 * lm.width * 4


def test_rows_of_another_process_become_known(lm, tmp_path):
    mine, other = StateStore(tmp_path, lm), StateStore(tmp_path, lm)
    for number, row in enumerate(ROWS):
        check(lm, (mine, other)[number % 2].states([row]), [row])
    for one in (mine, other):
        check(lm, one.states(ROWS), ROWS)
    assert mine.computed + other.computed == len(ROWS)
