"""Keys and values kept of texts: those of the model, read once, alike in any batch."""

import os

import pytest
import torch

from processes import process
from shoulders.backbone.caches import PassMemory, plain
from shoulders.engine.precomputed import Contexts, StateStore, context_bytes
from shoulders.errors import SaveFailed, UsageError
from shoulders.store.cache import DATA

TEXTS = [[5, 9, 3], [*range(40, 65)], [7, 8, 9, 10, 11, 12, 13], [5, 9, 3, 4]]  # the second is beyond a window of 16
AFTER = [70, 71, 72, 73]


@torch.no_grad()
def after(lm, known, texts):
    """States of the tokens that follow each text, over what is known of the texts."""
    longest = max(map(len, texts))
    mask = torch.tensor([[column >= longest - len(text) for column in range(longest)] for text in texts])
    memory = PassMemory.holding(known, longest, None if mask.all() else mask)
    new = torch.ones(len(texts), len(AFTER), dtype=torch.bool)
    return lm.states(lm.embed(torch.tensor([AFTER] * len(texts))), None if mask.all() else new, memory)


@torch.no_grad()
def own(lm, text):
    return lm.states(lm.embed(torch.tensor([[*text, *AFTER]])))[0, len(text) :]


def check(lm, known, texts):
    for states, text in zip(after(lm, known, texts), texts, strict=True):
        torch.testing.assert_close(states, own(lm, text), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stored", [False, True])
def test_what_follows_a_text_is_alike_in_any_batch(any_lm, tmp_path, stored):
    contexts = Contexts(any_lm, tmp_path if stored else "")
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS[:1], []], TEXTS[1:2], [TEXTS[0], TEXTS[0]]):
        check(any_lm, contexts.read(texts), texts)
    assert contexts.computed == (len(TEXTS) if stored else 4 + 4 + 1 + 1 + 1)


def test_another_run_reads_what_is_kept(any_lm, tmp_path):
    first = Contexts(any_lm, tmp_path).read(TEXTS)
    again = Contexts(any_lm, tmp_path)
    found = again.read(TEXTS)
    assert (again.computed, again.damaged) == (0, 0)
    for layers in zip(first.layers, found.layers, strict=True):
        for one, other in zip(*layers, strict=True):
            assert torch.equal(one, other)


def test_the_bytes_that_are_kept_are_those_foretold(any_lm, tmp_path):
    Contexts(any_lm, tmp_path).read(TEXTS)
    (place,) = tmp_path.iterdir()
    assert (place / DATA).stat().st_size == sum(context_bytes(any_lm, len(text)) for text in TEXTS)


def test_the_last_layer_ends_where_its_keys_and_values_are(lm):
    """Nothing reads what it makes of them."""
    ran = []
    last = lm.model.base_model.layers[-1].mlp
    hook = last.register_forward_hook(lambda *_: ran.append(True))
    Contexts(lm).read(TEXTS)
    hook.remove()
    assert not ran


def test_another_backbone_type_and_positions_have_a_place_of_their_own(tiny_lm, tmp_path, monkeypatch):
    models = [tiny_lm("llama"), tiny_lm("llama", "bfloat16"), tiny_lm("gpt2")]
    for lm in models:
        known = Contexts(lm, tmp_path).read(TEXTS)
        assert known.layers[0][0].dtype == lm.dtype
    StateStore(tmp_path, models[0]).states(TEXTS)
    with monkeypatch.context() as patch:
        patch.setitem(models[0].config.rope_parameters, "rope_theta", 7.0)
        changed = Contexts(models[0], tmp_path)
        changed.read(TEXTS)
        assert changed.computed == len(TEXTS)
    assert len(list(tmp_path.iterdir())) == len(models) + 2
    for lm in models:
        again = Contexts(lm, tmp_path)
        again.read(TEXTS)
        assert again.computed == 0


def test_layers_that_keep_more_than_keys_and_values_are_refused(tiny_lm, tmp_path):
    lm = tiny_lm("qwen3_5")
    assert not plain(lm.config)
    with pytest.raises(UsageError, match=r"qwen3_5.*linear attention: leave training\.contexts empty"):
        Contexts(lm, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_nothing_stored_is_lost(lm, tmp_path, monkeypatch):
    Contexts(lm, tmp_path).read(TEXTS[:2])
    store = Contexts(lm, tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SaveFailed, match=r"No space left .* as it was before: .*\(training\.contexts\)"):
            store.read(TEXTS)
    for one in (store, Contexts(lm, tmp_path)):
        check(lm, one.read(TEXTS[:2]), TEXTS[:2])
        assert one.computed == 0
    check(lm, store.read(TEXTS), TEXTS)


def test_a_flipped_bit_is_told_of_and_its_text_read_anew(lm, tmp_path):
    Contexts(lm, tmp_path).read(TEXTS)
    (place,) = tmp_path.iterdir()
    content = bytearray((place / DATA).read_bytes())
    content[len(content) // 2] ^= 16
    (place / DATA).write_bytes(content)
    store = Contexts(lm, tmp_path)
    with pytest.warns(UserWarning, match="1 damaged rows in .* their keys and values are computed anew"):
        check(lm, store.read(TEXTS), TEXTS)
    assert (store.computed, store.damaged) == (1, 1)


FILL = """
from shoulders.engine.precomputed import Contexts
from shoulders.backbone.frozen import FrozenLM
model, folder = arguments
store = Contexts(FrozenLM.load(model, dtype="float32", device="cpu"), folder)
for start in range(100000):
    store.read([[start % 300 + 5, n + 3, 5, 7, start % 11] for n in range(8)])
    pipe.send(start)
"""


def test_a_process_killed_while_it_writes_leaves_no_wrong_text(lm, tmp_path):
    for wanted in (1, 3):
        with process(FILL, lm.name, tmp_path) as (_, pipe):
            while pipe.recv() < wanted:
                pass
    store = Contexts(lm, tmp_path)
    for start in range(4):
        texts = [[start + 5, n + 3, 5, 7, start] for n in range(8)]
        check(lm, store.read(texts), texts)
    assert (store.computed, store.damaged) == (0, 0)
    check(lm, store.read(TEXTS), TEXTS)
