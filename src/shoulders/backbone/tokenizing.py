"""From texts to token ids: special tokens spelled out in a text are read as text, and every id has an embedding."""

import re
from contextlib import nullcontext
from threading import Lock
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerBase

from shoulders.errors import UsageError

_CUTTING = Lock()  # a tokenizer that cuts texts is set to their length in place: one thread at a time


def keep_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Set a tokenizer to read `</s>` in a text as four characters; tokens that it adds itself stay special.

    A Unigram model (T5, XLM-R) has special tokens among its pieces and still finds them in texts. There a text is cut
    after the first character of each.
    """
    tokenizer.split_special_tokens = True
    tokens = [str(token) for token in tokenizer.all_special_tokens]
    ids = [tokenizer(token, add_special_tokens=False).input_ids for token in tokens]
    found = [
        token for token, some in zip(tokens, ids, strict=True)
        if len(token) > 1 and tokenizer.convert_tokens_to_ids(token) in some
    ]  # fmt: skip
    if found and tokenizer.is_fast:
        backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined] (of fast tokenizers)
        cuts = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in found)
        cut = pre_tokenizers.Split(Regex(cuts), "merged_with_previous")
        usual = backend.pre_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([usual, cut]) if usual else cut
    return tokenizer


def tokenized(tokenizer: PreTrainedTokenizerBase, rows: int, *texts: Any, **settings: Any) -> BatchEncoding:
    """Return the encoding of texts by a tokenizer, with its own arguments.

    Args:
        tokenizer: the tokenizer.
        rows: number of the model's embeddings.
        texts: a text or a list of texts, and optionally the second parts of pairs.
        settings: further arguments of the tokenizer.

    Raises:
        UsageError: a text is not valid Unicode, or has a token that the model has no embedding for.
    """
    for some in (*texts, settings.get("text_target")):
        check_characters([some] if isinstance(some, str) else some or ())
    with _CUTTING if settings.get("truncation") else nullcontext():
        found = tokenizer(*texts, **settings)
    check_rows(tokenizer, rows, found.input_ids)
    return found


def check_characters(texts: Any) -> None:
    """Raise `UsageError` for a text with a lone surrogate, which comes from broken escapes and bytes not in UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"a text has {text[error.start]!a} as character {error.start + 1}, which is not a whole character "
                f"({text[max(0, error.start - 20) : error.end + 20]!a}): it is not UTF-8, convert it first"
            ) from error


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, ids: Any) -> None:
    """Raise `UsageError` for token ids, or rows of them, beyond a model's number of embeddings."""
    flat = ids if not ids or isinstance(ids[0], int) else [token for some in ids for token in some]
    highest = max(flat, default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path!r} knows the token {token!r} (id {highest}), but the model has "
            f"only {rows} embeddings: leave it out, or name a model that was resized for its tokenizer"
        )
