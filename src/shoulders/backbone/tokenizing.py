"""From texts to token ids: what looks like a special token in a text is text, and every id has its embedding."""

import re
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerBase

from shoulders.errors import UsageError


def keep_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Set a tokenizer to read `</s>` in a text as four characters; those it adds itself stay special.

    The vocabulary of a Unigram model (T5, XLM-R) holds special tokens among its pieces, and finds them in texts all the
    same. There a text is cut after the first character of each.
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
    """Read texts with a tokenizer, as it is called itself.

    Args:
        rows: of the model's embeddings.
        texts: a text or a list of texts, and perhaps the second parts of pairs.

    Raises:
        UsageError: a text holds half a character, or a token that the model has no embedding for.
    """
    for some in (*texts, settings.get("text_target")):
        check_characters([some] if isinstance(some, str) else some or ())
    found = tokenizer(*texts, **settings)
    check_rows(tokenizer, rows, found.input_ids)
    return found


def check_characters(texts: Any) -> None:
    """Raise `UsageError` for a text with a lone surrogate, which broken escapes and bytes that are no UTF-8 become."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"a text holds {text[error.start]!a} as character {error.start + 1}, which is no whole character "
                f"({text[max(0, error.start - 20) : error.end + 20]!a}): it is not UTF-8, convert it first"
            ) from error


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, ids: Any) -> None:
    """Raise `UsageError` for token ids, or rows of them, that a model with so many embeddings does not know."""
    flat = ids if not ids or isinstance(ids[0], int) else [token for some in ids for token in some]
    highest = max(flat, default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path!r} knows the token {token!r} (id {highest}), but the model has "
            f"{rows} embeddings only: leave it out, or name a model that was resized for its tokenizer"
        )
