import pytest
import torch

from shoulders.errors import UsageError
from shoulders.scaffolds.soft_prompt import (
    FREQUENT,
    SoftPrompt,
    from_labels,
    from_normal,
    from_text,
    from_vocabulary,
    insert_prompt,
)


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


def test_a_text_is_repeated_until_the_prompt_is_full(lm):
    ids = lm.tokenizer("planet", add_special_tokens=False).input_ids
    rows = from_text(lm, "planet")(len(ids) * 2 + 1)
    assert torch.equal(rows, lm.embed(torch.tensor([*ids, *ids, ids[0]])))


def test_labels_take_one_vector_each_and_a_vocabulary_sample_follows(lm):
    """Lester et al. 2021, section 3.2: a label of several tokens is their mean."""
    long = lm.tokenizer("planet", add_special_tokens=False).input_ids
    assert len(long) > 1
    rows = from_labels(lm, ["planet", "bad"], seed=4)(5)
    assert torch.equal(rows[0], lm.embed(torch.tensor(long)).mean(0))
    assert torch.equal(rows[2:], from_vocabulary(lm, seed=4)(3))
    assert torch.equal(from_labels(lm, ["planet", "bad"])(1), rows[:1])
    with pytest.raises(UsageError, match="at least one label to start from, got none"):
        from_labels(lm, [])


def test_normal_vectors_have_the_vocabularys_scale(lm):
    rows = from_normal(lm)(200)
    wanted = lm.embed(torch.arange(lm.vocabulary)).std()
    assert rows.std().item() == pytest.approx(wanted.item(), rel=0.05)


def test_an_empty_text_is_refused(lm):
    with pytest.raises(UsageError, match="a text of at least one token to start from, got none"):
        from_text(lm, "")


def test_weaving_puts_the_prompt_where_it_belongs():
    prompt = torch.full((2, 2, 1), -1.0)
    text = torch.arange(1.0, 5)[None, :, None].expand(2, -1, -1)
    woven, predicting = insert_prompt(prompt, text, (1, 4))
    assert woven[0, :, 0].tolist() == [1, -1, -1, 2, 3, 4]
    assert woven[1, :, 0].tolist() == [1, 2, 3, 4, -1, -1]
    # The position before the slot predicts through the last prompt vector.
    assert predicting.tolist() == [[2, 3, 4, 5], [0, 1, 2, 5]]
