import pytest
import torch

from shoulders.errors import UsageError
from shoulders.scaffolds.initialise import FREQUENT, from_labels, from_normal, from_text, from_vocabulary
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.weaving import weave


def test_what_trains_is_what_is_saved(lm):
    prompt = SoftPrompt(from_vocabulary(lm)(7))
    assert {name for name, _ in prompt.named_parameters()} == set(prompt.state_dict()) == {"prompt"}
    assert prompt.prompt.dtype == torch.float32
    assert prompt.length == 7


def test_prompts_are_fp32_around_a_bf16_backbone(tiny_lm):
    lm = tiny_lm("llama", "bfloat16")
    assert SoftPrompt(from_vocabulary(lm)(3)).prompt.dtype == torch.float32


def test_a_vocabulary_sample_has_different_frequent_rows(lm):
    rows = from_vocabulary(lm, seed=1)(20)
    table = lm.embed(torch.arange(lm.vocabulary)).float()
    found = torch.cdist(rows, table).argmin(1)
    assert torch.equal(table[found], rows)
    assert len(set(found.tolist())) == 20
    assert not set(found.tolist()) & set(lm.tokenizer.all_special_ids)
    assert max(found.tolist()) < FREQUENT + len(lm.tokenizer.all_special_ids)
    assert not torch.equal(rows, from_vocabulary(lm, seed=2)(20))
    assert torch.equal(rows, from_vocabulary(lm, seed=1)(20))


def test_text_and_labels_are_repeated_until_the_prompt_is_full(lm):
    ids = lm.tokenizer("planet", add_special_tokens=False).input_ids
    rows = from_text(lm, "planet")(len(ids) * 2 + 1)
    table = lm.embed(torch.tensor([*ids, *ids, ids[0]]))
    assert torch.equal(rows, table)
    labels = from_labels(lm, ["good", "bad"])(2)
    first = lm.tokenizer("good", add_special_tokens=False).input_ids[0]
    assert torch.equal(labels[0], lm.embed(torch.tensor(first)))


def test_normal_vectors_have_the_vocabularys_scale(lm):
    rows = from_normal(lm)(200)
    wanted = lm.embed(torch.arange(lm.vocabulary)).std()
    assert rows.std().item() == pytest.approx(wanted.item(), rel=0.05)


def test_an_empty_text_is_refused(lm):
    with pytest.raises(UsageError, match="empty text"):
        from_text(lm, "")


def test_weaving_puts_the_prompt_where_it_belongs():
    prompt = torch.full((2, 2, 1), -1.0)
    text = torch.arange(1.0, 5)[None, :, None].expand(2, -1, -1)
    woven, predicting = weave(prompt, text, (1, 4))
    assert woven[0, :, 0].tolist() == [1, -1, -1, 2, 3, 4]
    assert woven[1, :, 0].tolist() == [1, 2, 3, 4, -1, -1]
    # The position before the slot predicts through the last prompt vector.
    assert predicting.tolist() == [[2, 3, 4, 5], [0, 1, 2, 5]]
