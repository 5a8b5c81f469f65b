import pytest
import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from shoulders.data.batching import encode, training_batch
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.records import Question
from shoulders.scaffolds.initialise import from_vocabulary
from shoulders.scaffolds.peft_format import from_peft, to_peft
from shoulders.scaffolds.soft_prompt import SoftPrompt


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
    assert torch.equal(from_peft(tmp_path / "adapter").prompt, prompt.prompt)


def test_an_adapter_of_peft_has_the_same_logits_here(lm, tmp_path):
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(lm.name), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    prompt = from_peft(tmp_path / "adapter")
    assert prompt.length == 5
    ours, theirs = logits_of_both(lm, prompt, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_peft_cannot_hold_is_refused(lm, tmp_path):
    with pytest.raises(UsageError, match="this one is a suffix"):
        to_peft(SoftPrompt(from_vocabulary(lm)(2), "suffix"), lm, tmp_path / "a")
    with pytest.raises(SourceNotFound, match="no PEFT adapter"):
        from_peft(tmp_path)


def test_other_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UsageError, match="peft type LORA, not PROMPT_TUNING"):
        from_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(CorruptFile, match=r"adapter_model\.safetensors"):
        from_peft(tmp_path)
