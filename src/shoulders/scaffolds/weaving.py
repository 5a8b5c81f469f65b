"""Placing a prompt into a batch of texts, and running the result through the frozen model."""

from collections.abc import Callable
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory, PassMemory
from shoulders.records import LMInput


class Placement(StrEnum):
    """Where a prompt stands."""

    PREFIX = "prefix"  # before everything (Lester et al. 2021; the paper)
    INFIX = "infix"  # between the evidence and the question
    SUFFIX = "suffix"  # after the question: the text is read without gradients, and alike by every scaffold


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


def prompted_states(
    lm: FrozenLM,
    prompt_of: Callable[[], Float[Tensor, "B P D"]],
    given: LMInput,
    memory: Memory | None,
) -> Float[Tensor, "B T D"]:
    """States of the text positions of one pass with a prompt in its slot; what `Scaffold.states` promises."""
    one = None
    if memory is not None:
        begun, one = memory.started, memory.passes[0]
        memory.length += given.embeds.shape[1]
        if begun:
            return lm.states(given.embeds, given.mask, one)
    elif given.before is not None or _trains_after_text(lm, given):
        return _states_after(lm, prompt_of(), given, given.slot[0])
    prompt = prompt_of()
    if prompt.shape[1] == 0:
        return lm.states(given.embeds, given.mask, one)
    woven, predicting = weave(prompt, given.embeds, given.slot)
    mask = None if given.mask is None else weave_mask(given.mask, prompt.shape[1], given.slot)
    states = lm.states(woven, mask, one)
    return states.gather(1, predicting[..., None].expand(-1, -1, states.shape[-1]))


def _trains_after_text(lm: FrozenLM, given: LMInput) -> bool:
    return torch.is_grad_enabled() and len(set(given.slot)) == 1 and given.slot[0] > 0 and not lm.recurrent


def _states_after(lm: FrozenLM, prompt: Float[Tensor, "B P D"], given: LMInput, slot: int) -> Float[Tensor, "B T D"]:
    """Training with the prompt after a text: the text is read once, without gradients or stored activations.

    Nothing that trains stands before the slot, so the states of those positions are constants; gradients start at the
    prompt, which attends to the text's keys and values. Where these are known, the text is not read at all, and zeros
    stand in the place of its states.
    """
    length = prompt.shape[1]
    text, text_mask = given.embeds[:, :slot], None if given.mask is None else given.mask[:, :slot]
    if given.before is None:
        memory = lm.memory().passes[0]
        with torch.no_grad():
            before = lm.states(text, text_mask, memory)
    else:
        memory = PassMemory.holding(lm.config, given.before, slot, text_mask)
        before = torch.zeros_like(text)
    rest = torch.cat([prompt.to(given.embeds.dtype), given.embeds[:, slot:]], dim=1)
    ones = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    mask = None if given.mask is None else torch.cat([ones, given.mask[:, slot:]], dim=1)
    after = lm.states(rest, mask, memory)
    # The state before the slot is replaced by the last prompt vector's: it is what predicts the position at the slot.
    return torch.cat([before[:, :-1], after[:, length - 1 :]], dim=1)
