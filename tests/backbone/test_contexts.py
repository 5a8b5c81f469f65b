"""Keys and values kept of texts: those of the model, read once, alike in any batch."""

import pytest
import torch

from shoulders.backbone.contexts import Contexts
from shoulders.backbone.memory import PassMemory

TEXTS = [[5, 9, 3], [*range(40, 65)], [7, 8, 9, 10, 11, 12, 13], [5, 9, 3, 4]]  # the second is beyond a window of 16
AFTER = [70, 71, 72, 73]


@torch.no_grad()
def after(lm, known, texts):
    """States of the tokens that follow each text, over what is known of the texts."""
    longest = max(map(len, texts))
    mask = torch.tensor([[column >= longest - len(text) for column in range(longest)] for text in texts])
    memory = PassMemory.holding(lm.config, known, longest, None if mask.all() else mask)
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
