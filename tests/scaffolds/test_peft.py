import json
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shoulders.engine.batches import encode, training_batch
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.records import Question
from shoulders.scaffolds.peft import from_peft, read_adapter, to_peft
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary


def logits_of_both(lm, prompt, peft_model):
    """Logits of every text position, ours and PEFT's."""
    ids = torch.tensor([lm.ids("What is the capital of France?")])
    with torch.no_grad():
        given = training_batch([encode(Question("What is the capital of France?"), lm, "P")], lm, prompt).given
        ours = lm.logits(prompt.states(lm, given))[:, : ids.shape[1]]
        theirs = peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return ours, theirs[:, prompt.length :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_prompt_saved_for_peft_has_the_same_logits_there(tiny_lm, tmp_path, family):
    lm = tiny_lm(family)
    prompt = SoftPrompt(from_vocabulary(lm)(6))
    to_peft(prompt, lm, tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm.name), tmp_path / "adapter").eval()
    ours, theirs = logits_of_both(lm, prompt, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(from_peft(tmp_path / "adapter", lm).prompt, prompt.prompt)


def test_an_adapter_of_peft_has_the_same_logits_here(lm, tmp_path):
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(lm.name), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    prompt = from_peft(tmp_path / "adapter", lm)
    assert prompt.length == 5
    ours, theirs = logits_of_both(lm, prompt, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_peft_cannot_hold_is_refused(lm, tmp_path):
    with pytest.raises(UsageError, match="this one's is suffix"):
        to_peft(SoftPrompt(from_vocabulary(lm)(2), "suffix"), lm, tmp_path / "a")
    with pytest.raises(SourceNotFound, match="no PEFT adapter"):
        from_peft(tmp_path, lm)


def test_other_adapters_are_refused(lm, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    with pytest.raises(UsageError, match="peft type VERA, not PROMPT_TUNING, PREFIX_TUNING"):
        from_peft(tmp_path, lm)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(CorruptFile, match=r"adapter_model\.safetensors"):
        from_peft(tmp_path, lm)


@pytest.fixture
def adapter(lm, tmp_path):
    """A prompt of four vectors as PEFT keeps it."""
    to_peft(SoftPrompt(from_vocabulary(lm)(4)), lm, tmp_path / "adapter")
    return tmp_path / "adapter"


def told(adapter, **values):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **values}))


def test_a_pickled_adapter_is_named_and_not_opened(lm, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "kept")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"prompt_embeddings": 1}))
    with pytest.raises(UsageError, match=r"adapter_model\.bin is a pickle.*save it again"):
        from_peft(adapter, lm)
    (adapter / "kept").rename(adapter / "adapter_model.safetensors")
    assert from_peft(adapter, lm).length == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task_type": "SEQ_CLS"}, "of task type SEQ_CLS, not CAUSAL_LM"),
        ({"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 2}, "of task type SEQ_2_SEQ_LM"),
        ({"num_transformer_submodules": 2}, "of num transformer submodules 2, not 1"),
        ({"peft_type": "P_TUNING"}, "of peft type P_TUNING, not PROMPT_TUNING"),
    ],
)
def test_an_adapter_for_something_else_is_refused(lm, adapter, values, said):
    told(adapter, **values)
    with pytest.raises(UsageError, match=said):
        from_peft(adapter, lm)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.tuples(st.integers(1, 6), st.integers(30, 34)),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    extra=st.sets(st.sampled_from(["prompt_encoder.weight", "base_model.classifier.weight"])),
    named=st.booleans(),
)
def test_an_adapter_is_read_whole_or_refused(lm, adapter, said, shape, extra, named):
    told(adapter, num_virtual_tokens=said[0], token_dim=said[1])
    tensors = {"prompt_embeddings" if named else "prompt": torch.ones(shape)}
    save_file(tensors | {name: torch.zeros(2) for name in extra}, adapter / "adapter_model.safetensors")
    if tuple(shape) == said and named and not extra:
        if shape[1] == lm.width:
            assert torch.equal(from_peft(adapter, lm).prompt, torch.ones(shape))
            return
        with pytest.raises(UsageError, match=f"have width {shape[1]}, and .* needs {lm.width}"):
            from_peft(adapter, lm)
        return
    with pytest.raises(CorruptFile) as refused:
        from_peft(adapter, lm)
    assert all(name in str(refused.value) for name in ({str(tuple(shape))} if named and not extra else extra))


def test_lora_of_which_a_part_is_missing_or_not_its_own_is_refused(tiny_lm, tmp_path):
    lm = tiny_lm("gpt2")
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["c_fc"], fan_in_fan_out=True)
    get_peft_model(lm.copied().model, config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert read_adapter(lm.copied(), tmp_path)
    first = sorted(tensors)[0]
    for broken in (
        {name: value for name, value in tensors.items() if name != first},
        tensors | {"other": torch.ones(1)},
    ):
        save_file(broken, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CorruptFile, match=f"{first} is missing|other is not its own"):
            read_adapter(lm.copied(), tmp_path)
