"""Several inputs in one forward of a stack: each row's states are those of the row alone, on any memory."""

import pytest
import torch

from shoulders.backbone.caches import PassMemory, windows
from shoulders.backbone.passes import StackInput, run_stack, run_stack_together

SHAPES = ((2, 3, 1), (1, 30, 4), (3, 0, 9), (1, 5, 1), (2, 0, 21))  # rows, columns in the memory, new columns


def padded(rows, columns, seed):
    """A mask with some padding on the left; the last row has none."""
    pads = torch.randint(0, max(1, columns // 2), (rows, 1), generator=torch.Generator().manual_seed(seed))
    pads[-1] = 0
    return torch.arange(columns)[None] >= pads


def parts_of(lm):
    """Inputs with memories of different lengths, longer and shorter than a sliding window of 16."""
    for seed, (rows, seen, new) in enumerate(SHAPES):
        ids = torch.randint(3, lm.vocabulary, (rows, seen + new), generator=torch.Generator().manual_seed(seed))
        mask, memory = padded(rows, seen + new, seed), PassMemory()
        if seen:
            run_stack(lm.model.base_model, lm.embed(ids[:, :seen]), mask[:, :seen], memory)
        yield StackInput(lm.embed(ids[:, seen:]), mask[:, seen:], memory)


@torch.inference_mode()
def test_each_row_of_a_joined_forward_is_the_row_alone(any_lm):
    """Twice in a row: the second forward finds the keys and values that each memory kept of the first."""
    stack = any_lm.model.base_model
    joined, alone = list(parts_of(any_lm)), list(parts_of(any_lm))
    step = any_lm.embed(torch.tensor([[5, 6]]))
    for _ in range(2):
        states = run_stack_together(stack, joined)
        for part, found, single in zip(joined, states, alone, strict=True):
            wanted = run_stack(stack, single.embeds, single.mask, single.memory)
            real = torch.ones(wanted.shape[:2], dtype=torch.bool) if single.mask is None else single.mask
            torch.testing.assert_close(found[real], wanted[real], rtol=1e-4, atol=1e-4)
            assert part.memory.seen == single.memory.seen
        joined, alone = (
            [StackInput(step.expand(len(one.embeds), -1, -1), None, one.memory) for one in parts]
            for parts in (joined, alone)
        )


def test_windows_are_those_of_the_configuration(tiny_lm):
    assert windows(tiny_lm("llama").config) == [0, 0, 0]
    assert windows(tiny_lm("mistral").config) == [16, 16, 16]
    assert sorted(windows(tiny_lm("gemma2").config)) == [0, 16, 16]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_keys_and_values_are_those_of_a_forward(tiny_lm, family):
    """Also where a layer's window is shorter than the text: all positions are there."""
    lm = tiny_lm(family)
    ids = torch.randint(3, lm.vocabulary, (2, 12))
    memory = PassMemory()
    lm.states(lm.embed(ids), memory=memory)
    for (keys, values), layer in zip(lm.keys_values(ids).layers, memory.cache.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys)
        torch.testing.assert_close(values, layer.values)
    assert all(keys.shape[2] == 24 for keys, _ in lm.keys_values(ids.repeat(1, 2)).layers)
