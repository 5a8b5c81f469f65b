import pytest
import torch
from transformers import AttentionInterface

from shoulders.backbone.attention import LONGEST, attention


class Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("new", [7, 3, 1])
def test_short_sequences_are_attended_to_as_by_the_fused_kernel(masked, new):
    """Values and gradients, with and without padding, with and without keys from a memory."""
    rows, keys = 2, 7
    query = torch.randn(rows, 6, new, 8, requires_grad=True)
    key, value = (torch.randn(rows, 2, keys, 8, requires_grad=True) for _ in range(2))
    causal = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)
    mask = causal.expand(rows, 1, new, keys).clone()
    if masked:
        mask[0, :, :, :2] = False
        mask[0, :, :, 1] |= torch.arange(new) + keys - new == 1  # no row may be left with nothing to look at
    elif new in (1, keys):
        mask = None
    ours, _ = attention(Layer(), query, key, value, mask, scaling=0.3)
    fused, _ = AttentionInterface()["sdpa"](Layer(), query, key, value, mask, scaling=0.3)
    real = slice(1, None) if masked and new == keys else slice(None)
    torch.testing.assert_close(ours[:, real], fused[:, real], rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours[:, real])
    gradients = [torch.autograd.grad((out[:, real] * weight).sum(), (query, key, value)) for out in (ours, fused)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_new_position_looks_at_any_number_of_keys():
    keys = LONGEST + 8
    query, key = torch.randn(2, 6, 1, 8), torch.randn(2, 2, keys, 8)
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1, :, :, :300] = False
    ours, _ = attention(Layer(), query, key, key, mask, scaling=0.3)
    fused, _ = AttentionInterface()["sdpa"](Layer(), query, key, key, mask, scaling=0.3)
    torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-5)
    alone, _ = attention(Layer(), query[1:], key[1:, :, 300:], key[1:, :, 300:], None, scaling=0.3)
    torch.testing.assert_close(ours[1:], alone, rtol=1e-4, atol=1e-5)


def test_few_positions_after_a_long_text_are_attended_to_as_by_the_fused_kernel():
    new, keys = 9, LONGEST + 40
    query = torch.randn(2, 6, new, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, keys, 8, requires_grad=True) for _ in range(2))
    mask = torch.ones(new, keys, dtype=torch.bool).tril(keys - new).expand(2, 1, new, keys).clone()
    mask[0, :, :, :300] = False
    ours, _ = attention(Layer(), query, key, value, mask, scaling=0.3)
    fused, _ = AttentionInterface()["sdpa"](Layer(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (ours, fused)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_long_sequences_go_to_the_fused_kernel():
    length = LONGEST + 8
    query, key = torch.randn(1, 6, length, 8), torch.randn(1, 2, length, 8)
    ours, _ = attention(Layer(), query, key, key, None, scaling=0.3)
    fused, _ = AttentionInterface()["sdpa"](Layer(), query, key, key, None, scaling=0.3)
    assert torch.equal(ours, fused)
