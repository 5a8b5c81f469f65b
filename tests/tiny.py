"""How the tiny models of the tests are made: random weights, real configurations, a real byte-pair tokenizer."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

TEXTS = [
    "What is the capital of France?",
    "Name a planet.",
    "Is this review good or bad? The film was long, but every minute of it was worth the price of the ticket.",
    "Two plus two is",
    "Answer with one word: which animal barks, the cat or the dog?",
]
VOCABULARY = 400
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COMMON = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}


def _configs():
    return {
        "llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
        "gpt2": GPT2Config(**SIZES, n_embd=32, n_inner=48, n_layer=3, n_head=4, n_positions=128),
        "gpt_neox": GPTNeoXConfig(**COMMON),
        "qwen2": Qwen2Config(**GROUPED),
        "qwen3": Qwen3Config(**GROUPED, head_dim=8),
        "opt": OPTConfig(**SIZES, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
                         max_position_embeddings=128, word_embed_proj_dim=24),
        "gemma": GemmaConfig(**GROUPED, head_dim=8),
        "gemma2": Gemma2Config(**GROUPED, head_dim=8, sliding_window=16, query_pre_attn_scalar=8,
                               final_logit_softcapping=1.0),
        "bloom": BloomConfig(**SIZES, hidden_size=32, n_layer=3, n_head=4),
        "falcon": FalconConfig(**COMMON, new_decoder_architecture=True, num_kv_heads=2),
        "mistral": MistralConfig(**GROUPED, sliding_window=16),
        "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=16, query_pre_attn_scalar=8),
        "mixtral": MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    }  # fmt: skip


def _others():
    """Linear attention beside the usual kind, which only some tests need; and what cannot serve as backbone."""
    return {
        "qwen3_5": Qwen3_5TextConfig(
            **GROUPED, layer_types=["linear_attention", "full_attention", "linear_attention"], head_dim=8,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        ),
        "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=4),
        "bart": BartConfig(
            vocab_size=VOCABULARY, d_model=32, decoder_layers=2, encoder_layers=2, decoder_ffn_dim=48,
            decoder_attention_heads=4, max_position_embeddings=128, is_decoder=True, is_encoder_decoder=False,
        ),
    }  # fmt: skip


FAMILIES = tuple(_configs())


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts above."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_lm(family: str, folder: Path) -> None:
    """A causal model of a family with random weights, larger than usual so that everything has an effect."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config({**_configs(), **_others()}[family])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_encoder(family: str, folder: Path) -> None:
    """A text encoder of a family with random weights."""
    torch.manual_seed(2)
    if family == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=VOCABULARY, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
        )
    else:
        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 3, "max_position_embeddings": 64, "pad_token_id": 0,
        }  # fmt: skip
        model = BertModel(BertConfig(**sizes)) if family == "bert" else RobertaModel(RobertaConfig(**sizes))
    model.save_pretrained(folder)
    made = tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.save_pretrained(folder)


NUMBERS = """
templates:
  a: !Template
    answer_choices: "even ||| odd"
    id: aaaaaaaa
    jinja: "Is {{n}} even or odd? ||| {{answer_choices[n % 2]}}"
    metadata: !TemplateMetadata {metrics: [Accuracy], original_task: true}
    name: choose
  b: !Template
    answer_choices: null
    id: bbbbbbbb
    jinja: "After {{n}} comes ||| {{n + 1}}"
    metadata: !TemplateMetadata {metrics: [Squad], original_task: true}
    name: count
"""


def save_numbers(folder: Path, train: range, validation: range, test: range) -> Path:
    """A task folder with two wordings, one of choices and one without."""
    folder.mkdir(parents=True)
    (folder / "templates.yaml").write_text(NUMBERS)
    (folder / "card.json").write_text(json.dumps({"name": folder.name, "cluster": "Sums"}))
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in rows))
    return folder


def save_encoder_decoder(family: str, folder: Path) -> None:
    """A sequence-to-sequence model with random weights, larger than usual so that everything has an effect."""
    torch.manual_seed(3)
    made = tokenizer()
    if family == "t5":
        config = T5Config(**{**SIZES, "bos_token_id": None}, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
                          decoder_start_token_id=0, tie_word_embeddings=False)  # fmt: skip
        model, ends = T5ForConditionalGeneration(config), "$A </s>"
    else:
        config = BartConfig(**SIZES, d_model=24, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
                            decoder_ffn_dim=32, encoder_attention_heads=3, decoder_attention_heads=3,
                            max_position_embeddings=64, decoder_start_token_id=2)  # fmt: skip
        model, ends = BartForConditionalGeneration(config), "<s> $A </s>"
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=ends, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.save_pretrained(folder)
