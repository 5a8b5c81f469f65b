"""Tiny encoders like BERT, with a word-piece tokenizer, for tests of what orders passages."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

QUESTION = "who was the first king of norway"
ANSWERS = ("Harald Fairhair", "Harald I")
PASSAGES = (
    ("Norway", "Harald Fairhair is remembered as the first king. Harald I. reigned long; Harald Fairhair died old."),
    ("Sweden", "The first king of all Sweden is not known for certain, and the sources do not agree about him."),
    ("Fish", "Cod is a fish."),
    ("", "Kings and queens of the north, their wars, their ships and their saints, in short chapters for the young."),
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTEXT = 96


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-piece tokenizer with BERT's special tokens, small enough to cut most words into pieces."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [QUESTION, *ANSWERS, *(f"{title} {text}" for title, text in PASSAGES)]
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=220, special_tokens=SPECIAL, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=CONTEXT,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def sizes(**other: object) -> dict:
    """Of a tiny encoder."""
    return {
        "vocab_size": len(tokenizer()), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": CONTEXT, "pad_token_id": 0, **other,
    }  # fmt: skip


def save_bert(folder: Path) -> str:
    """A tiny BERT with random weights, larger than usual so that everything has an effect."""
    torch.manual_seed(3)
    model = BertModel(BertConfig(**sizes()))
    save(model, folder)
    return str(folder)


def save(model: torch.nn.Module, folder: Path) -> None:
    """A model with its weights made larger, and the tokenizer."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
