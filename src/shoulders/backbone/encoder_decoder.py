"""A frozen sequence-to-sequence model (T0, FLAN-T5, BART), to compare with one frozen causal model.

It answers and ranks, by the same protocol. It takes no prompt and cannot be a backbone.
"""

import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from shoulders.backbone import fingerprint
from shoulders.backbone.choosing import Choice, Generated, ends_of, until_end
from shoulders.backbone.encoder import positions_read
from shoulders.backbone.frozen import pad_right, token_table
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.sources import locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import tokenized
from shoulders.records import IGNORE, Tokens


@final
class FrozenEncoderDecoder:
    """A pretrained sequence-to-sequence model whose weights never change; a plain object like `FrozenLM`.

    Attributes:
        name: the source that it was loaded from.
        context: number of positions that its encoder was made for.
        input_end: whether its input has the special tokens that its tokenizer adds (T5, FLAN-T5: an end token); T0 was
            trained and is evaluated without (bigscience-workshop/t-zero, `evaluation/run_eval.py`).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, input_end: bool = True
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.context = positions_read(model)
        self.input_end = input_end

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto", input_end: bool = True) -> Self:
        """Load a model by hub id, folder or package (`sources`), with types and devices as in `FrozenLM.load`.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: see `FrozenLM.load`.
        """
        place = pick_device(device)
        folder = locate(name)
        tokenizer = load_tokenizer(name, folder)
        model = load_whole(AutoModelForSeq2SeqLM, name, folder, dtype=pick_dtype(dtype, place))
        return cls(model.to(place), tokenizer, name, input_end=input_end)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """Name of the number type of its weights."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer (`choosing.ends_of`)."""
        return ends_of(self.model, self.tokenizer)

    def source_ids(self, text: str, longest: int) -> tuple[list[int], bool]:
        """Return the token ids of an input, cut to `longest` and the encoder's context, and whether it was cut."""
        room = min(longest, self.context)
        ids = self._tokens(text, add_special_tokens=self.input_end)
        if len(ids) <= room:
            return ids, False
        return self._tokens(text, add_special_tokens=self.input_end, truncation=True, max_length=room), True

    def target_ids(self, text: str) -> list[int]:
        """Return the token ids of an answer, with its end token."""
        return self._tokens(text_target=text)

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @torch.inference_mode()
    def score(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[Sequence[list[int]]],
        *,
        positions_at_once: int = 1 << 30,
    ) -> list[list[float]]:
        """Return the log-likelihood of each source's targets, summed over tokens, in fp32.

        The encoder reads each source once.

        Args:
            sources: B rows of token ids.
            targets: token ids of each row's targets (any number of them).
            positions_at_once: number of positions, of sources and targets, that the decoder reads at a time.
        """
        given = self._padded(sources)
        encoded = self.model.get_encoder()(input_ids=given.ids, attention_mask=given.mask).last_hidden_state
        owners = [row for row, some in enumerate(targets) for _ in some]
        flat = [ids for some in targets for ids in some]
        at_once = max(1, positions_at_once // (given.ids.shape[1] + max(map(len, flat), default=1)))
        found: list[float] = []
        for start in range(0, len(flat), at_once):
            owner = torch.tensor(owners[start : start + at_once], device=self.device)
            labels = pad_right(flat[start : start + at_once], IGNORE).ids.to(self.device)
            assert given.mask is not None
            found += self._log_likelihoods(encoded[owner], given.mask[owner], labels)
        values = iter(found)
        return [[next(values) for _ in some] for some in targets]

    def _log_likelihoods(
        self, encoded: Float[Tensor, "N S E"], mask: Tensor, labels: Int[Tensor, "N T"]
    ) -> list[float]:
        return (-self.losses(encoded, mask, labels)).tolist()

    def losses(self, encoded: Float[Tensor, "B S E"], mask: Tensor, labels: Int[Tensor, "B T"]) -> Float[Tensor, "B"]:
        """Return the negative log-likelihood of each row's labels, summed over its tokens, in fp32.

        Args:
            encoded: states of the encoder.
            mask: False at their padding.
            labels: token ids of the targets, `IGNORE` at padding.
        """
        logits = self.model(
            encoder_outputs=BaseModelOutput(encoded),  # type: ignore[arg-type] (declared as a FloatTensor)
            attention_mask=mask,
            labels=labels,  # the decoder's input is made from them, as in the model's training
        ).logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE)
        return losses.view(labels.shape).sum(1)

    def fused(self, groups: Sequence[Sequence[list[int]]]) -> tuple[Float[Tensor, "B S E"], Bool[Tensor, "B S"]]:
        """Encode the sources of each group apart; return their states one after the other, and a mask of padding.

        A decoder reads the sources of a group together: Fusion-in-Decoder (Izacard and Grave 2021, section 3).
        """
        given = self._padded([source for group in groups for source in group])
        states = self.model.get_encoder()(input_ids=given.ids, attention_mask=given.mask).last_hidden_state
        read = iter(states if given.mask is None else map(operator.getitem, states, given.mask))
        rows = [torch.cat([next(read) for _ in group]) for group in groups]
        ends = torch.tensor([len(row) for row in rows], device=self.device)
        fused = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return fused, torch.arange(fused.shape[1], device=self.device) < ends[:, None]

    @torch.inference_mode()
    def likeliest(self, sources: Sequence[list[int]], *, longest: int) -> list[Generated]:
        """Return the greedy answer to each source, of at most `longest` tokens, with its probability."""
        return self.likeliest_fused([[source] for source in sources], longest=longest)

    @torch.inference_mode()
    def likeliest_fused(self, groups: Sequence[Sequence[list[int]]], *, longest: int) -> list[Generated]:
        """Return the greedy answer to each group of sources (`fused`), with its probability."""
        encoded, mask = self.fused(groups)
        choice = Choice(self.ends)
        sequences: Tensor = self.model.generate(  # type: ignore[operator]
            encoder_outputs=BaseModelOutput(encoded),  # type: ignore[arg-type] (declared as a FloatTensor)
            attention_mask=mask.long(),
            max_new_tokens=longest,
            eos_token_id=list(self.ends),
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([choice]),
        )
        return choice.generated([until_end(row, self.ends) for row in sequences[:, 1:].tolist()])

    def fingerprint(self) -> str:
        """Return a hash over all weights that identifies the model, whatever type it is loaded in."""
        return fingerprint.identity(self.model)

    def _tokens(self, *text: str, **settings: Any) -> list[int]:
        return tokenized(self.tokenizer, token_table(self.model).shape[0], *text, **settings).input_ids

    def _padded(self, rows: Sequence[list[int]]) -> Tokens:
        pad = self.tokenizer.pad_token_id
        return pad_right(list(rows), pad if isinstance(pad, int) else 0).to(self.device)
