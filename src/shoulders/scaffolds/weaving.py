"""Placing a prompt into a batch of texts, and asking for the pass that reads both."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoulders.backbone.passes import Memory, PassMemory
from shoulders.records import KeysValues, ScaffoldInput
from shoulders.scaffolds.program import Pass, Program


def weave(
    prompt: Float[Tensor, "B P D"], text: Float[Tensor, "B T D"], slot: tuple[int, ...]
) -> tuple[Float[Tensor, "B P+T D"], Int[Tensor, "B T"]]:
    """The prompt put before text position `slot[b]` of each row.

    Returns:
        The woven rows, and for each text position the column whose state predicts the next text position: its own, but
        the last prompt vector's for the position just before the slot.
    """
    rows, length, text_length = prompt.shape[0], prompt.shape[1], text.shape[1]
    both = torch.cat([prompt.to(text.dtype), text], dim=1)
    at = torch.tensor(slot, device=text.device)[:, None]
    positions = torch.arange(text_length, device=text.device).expand(rows, -1)
    predicting = positions + length * (positions + 1 >= at)
    if not any(slot):
        return both, predicting
    columns = torch.arange(length + text_length, device=text.device).expand(rows, -1)
    source = torch.where(columns < at, columns + length, torch.where(columns < at + length, columns - at, columns))
    return both.gather(1, source[..., None].expand_as(both)), predicting


def weave_mask(mask: Bool[Tensor, "B T"], length: int, slot: tuple[int, ...]) -> Bool[Tensor, "B P+T"]:
    """The mask of woven rows; prompt positions are real."""
    ones = torch.ones(mask.shape[0], length, 1, device=mask.device)
    return weave(ones, mask[..., None].to(ones.dtype), slot)[0][..., 0].bool()


def prompted(prompt: Float[Tensor, "B P D"], given: ScaffoldInput, memory: Memory | None) -> Program:
    """Ask for one pass with a prompt in its slot; return what `Scaffold.program` promises."""
    if given.before is not None:
        return (yield from _after_known_text(prompt, given, given.before))
    one = None if memory is None else memory.single
    if prompt.shape[1] == 0:
        return (yield Pass(given.embeds, given.mask, one))
    woven, predicting = weave(prompt, given.embeds, given.slot)
    mask = None if given.mask is None else weave_mask(given.mask, prompt.shape[1], given.slot)
    states = yield Pass(woven, mask, one, constant=min(given.slot, default=0))
    return states.gather(1, predicting[..., None].expand(-1, -1, states.shape[-1]))


def _after_known_text(prompt: Float[Tensor, "B P D"], given: ScaffoldInput, before: KeysValues) -> Program:
    """Ask for a pass over the prompt and what follows it; zeros stand in the place of the states of the text before."""
    slot, length = given.slot[0], prompt.shape[1]
    memory = PassMemory.holding(before, slot, None if given.mask is None else given.mask[:, :slot])
    rest = torch.cat([prompt.to(given.embeds.dtype), given.embeds[:, slot:]], dim=1)
    ones = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    mask = None if given.mask is None else torch.cat([ones, given.mask[:, slot:]], dim=1)
    after = yield Pass(rest, mask, memory)
    # The state before the slot is replaced by the last prompt vector's: it is what predicts the position at the slot.
    return torch.cat([torch.zeros_like(given.embeds[:, : slot - 1]), after[:, length - 1 :]], dim=1)
