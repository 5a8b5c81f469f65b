"""Tiny models with chat templates in the manner of several families, and tokenizers that know their tokens."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from shoulders.backbone.frozen import FrozenLM

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|head|>system<|/head|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot|>' }}"
    "{% for m in rest %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '</turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>assistant\\n' }}{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ said.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
MISTRAL = (  # the system text stands in the last message of the user
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3, "mistral": MISTRAL}
SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|head|>", "<|/head|>", "<|eot|>"],
    "gemma": ["<turn>", "</turn>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "mistral": [],
}
ORDINARY = {"qwen3": ["<think>", "</think>"], "mistral": ["[INST]", "[/INST]"]}  # added tokens that are not special
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot|>", "gemma": "</turn>", "qwen3": "<|im_end|>", "mistral": "</s>"}
WITH_SYSTEM = ("chatml", "llama3", "qwen3", "mistral")


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, which itself adds a beginning token to a text."""
    made = Tokenizer(models.BPE())
    spaces = name == "mistral"  # as SentencePiece has them
    made.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="first") if spaces else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    made.decoder = decoders.Metaspace(prepend_scheme="first") if spaces else decoders.ByteLevel()
    letters = [chr(letter) for letter in range(32, 127)] + ["\n", "\u2581"]
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.VOCABULARY - 20,
        special_tokens=["<pad>", "<s>", "</s>", *SPECIAL[name]],
        initial_alphabet=letters if spaces else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(tiny.TEXTS * 4, trainer)
    made.add_tokens(ORDINARY.get(name, []))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=SPECIAL[name],
        chat_template=TEMPLATES[name],
    )


def chat_lm(name: str, lm: FrozenLM) -> FrozenLM:
    """The model of another, with the tokenizer and the template of a family."""
    return FrozenLM(lm.model, tokenizer(name), name)
