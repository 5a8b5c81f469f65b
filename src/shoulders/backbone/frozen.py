"""The frozen causal language model, its output head, and new blocks of its family and shape."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any, Self, cast, final

import torch
import torch.nn.functional as F
from accelerate import PartialState
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from shoulders.backbone import attention, fingerprint, packing, quantizing
from shoulders.backbone.caches import PassMemory, recurrent
from shoulders.backbone.chat import ChatTemplate
from shoulders.backbone.checkpointing import streamed
from shoulders.backbone.choosing import ends_of
from shoulders.backbone.edits import Edits
from shoulders.backbone.loading import load_tokenizer, load_whole
from shoulders.backbone.parts import Part, part_of, slice_config
from shoulders.backbone.passes import (
    StackInput,
    check_serves,
    first_embeddings,
    keys_values,
    layers_of,
    run_stack,
    run_stack_together,
)
from shoulders.backbone.placing import (
    FSDP,
    TENSOR,
    DeviceMap,
    check_parallel,
    entrance,
    give_back_freed,
    offloading,
    placement,
    shape_only,
    shard_layers,
    tensor_parallel,
)
from shoulders.backbone.sources import is_encoder_decoder, locate, pick_device, pick_dtype
from shoulders.backbone.tokenizing import keep_text, tokenized
from shoulders.errors import ContextFull, SourceNotFound, UsageError
from shoulders.records import IGNORE, KeysValues, Tokens

Head = Callable[[Float[Tensor, "... D"]], Float[Tensor, "... V"]]
PositionLoss = Callable[..., Float[Tensor, "N"]]  # of logits (N, V), labels (N) and further tensors of N rows


def token_table(model: PreTrainedModel) -> Float[Tensor, "V D"]:
    """Return the matrix of a model's input embeddings, a row for each token."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight


def head_of(model: PreTrainedModel) -> Head:
    """Return the function from final states to logits of this model, checked against its own logits.

    On the meta device, which has no values, it is not checked.

    Raises:
        SourceNotFound: none of the known heads gives the model's own logits.
    """
    matrix = model.get_output_embeddings()
    if matrix is None:
        raise SourceNotFound(f"{type(model).__name__} has no output embeddings: it is not a causal language model")
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    # Heads that the configuration names come first: on small logits a cap makes hardly any difference.
    heads: list[Head] = []
    if cap:
        heads.append(lambda states: cap * torch.tanh(matrix(states) / cap))
    if factor:
        heads.append(lambda states: matrix(states) * factor)
    if divisor:
        heads.append(lambda states: matrix(states) / divisor)
    heads.append(matrix)
    if shape_only(model):
        return heads[0]
    for head in heads:
        if _agrees(model, head):
            return head
    raise SourceNotFound(
        f"{type(model).__name__} computes its logits in a way that shoulders does not know (not by its output "
        "embeddings alone, scaled or capped): it cannot serve as backbone"
    )


@torch.no_grad()
def _agrees(model: PreTrainedModel, head: Head) -> bool:
    """Return whether a head gives the model's own logits."""
    embeds = first_embeddings(model, 3)
    own = model(inputs_embeds=embeds, use_cache=False).logits
    ours = head(model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    return torch.allclose(own.float(), ours.float().to(own.device), rtol=1e-3, atol=1e-3)


UNLIMITED = 1 << 30  # context of a model without a limit on positions
SCORED_AT_ONCE = 1024  # positions whose logits (V floats each) are held in memory at the same time


@final
class FrozenLM:
    """A pretrained causal language model whose weights never change.

    >>> lm = FrozenLM.load("HuggingFaceTB/SmolLM2-135M")  # or FrozenLM(model, tokenizer)  # doctest: +SKIP

    It is a plain object and never a child of a module, so that it is never trained or saved by accident. It uses the
    model's public interface only (input embeddings, base model, output embeddings), so that any Hugging Face causal LM
    with a vocabulary head for each position can be one. A model of your own is used as it is, and switched to
    evaluation without gradients; of a tokenizer of your own a copy is used, which reads special tokens in a text as
    characters.

    Attributes:
        name: the source that it was loaded from.
        width: D, the size of a token embedding.
        context: number of positions that the model was made for.
        quantized: the scheme that its linear layers are quantised by; empty if they are not.
        parallel: how several processes share its weights: "tensor", "fsdp", or empty if each has them all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        *,
        quantized: str = "",
        identity: str = "",
        parallel: str = "",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        quantizing.settle(model)
        self.quantized, self._identity = quantized or quantizing.scheme_of(model.config), identity
        self.parallel = parallel
        # A tokenizer of the user's own stays as it is.
        self.tokenizer = tokenizer if tokenizer.split_special_tokens else keep_text(deepcopy(tokenizer))
        self.name: str = name or str(model.name_or_path)
        self.config = model.config.get_text_config(decoder=True)
        self.width = token_table(model).shape[1]
        self.context = positions_of(self.config, tokenizer)
        check_serves(model)
        self.head: Head = head_of(model)
        self._parts: dict[tuple[int, int], Part] = {}
        if self.quantized:
            quantizing.check_trains(model, self.quantized)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        attention_kernel: str = "auto",
        quantize: str = "",
        device_map: str | DeviceMap = "",
        offload: str = "",
        parallel: str = "",
    ) -> Self:
        """Load a model by hub id, folder, GGUF file or package (`sources`).

        Args:
            name: see `shoulders.backbone.sources`.
            dtype: "auto" (bf16 where the device multiplies it fast, else fp32), "float32", "bfloat16" or "float16".
            device: "auto" (an accelerator if there is one), or any name that PyTorch knows.
            attention_kernel: "auto", or any name that transformers' `attn_implementation` takes.
            quantize: "nf4" or "int8": quantise the linear layers (`quantizing`); empty: leave them as they are saved.
            device_map: "auto", "disk", or devices by module, for a model that is larger than one device (`placing`).
            offload: folder for weights on disk that are not as they are in the checkpoint; with it alone, the map is
                "auto".
            parallel: "tensor" or "fsdp": share the weights among the processes that torchrun or Accelerate started.

        Raises:
            SourceNotFound, HubUnreachable: there is no such model, it cannot be fetched, or it is not a causal model.
            CorruptFile: weights are missing or do not belong to the model (`loading.load_whole`).
            UsageError: it cannot be quantised or placed in this way.
        """
        if is_encoder_decoder(name):
            raise SourceNotFound(
                f"{name!r} has an encoder and a decoder, and a backbone is a causal model: `shoulders evaluate bare` "
                "measures it as it is"
            )
        place = pick_device(device)
        number = pick_dtype(dtype, place)
        kernel = None if attention_kernel == "auto" else attention_kernel
        folder = locate(name)
        tokenizer = load_tokenizer(name, folder)
        check_parallel(parallel, {"device_map": device_map, "offload": offload, "quantize": quantize})
        how = tensor_parallel() if parallel == TENSOR else placement(name, folder, device_map, offload, place)
        method = quantizing.quantized_as(name, folder)
        if quantize:
            quantizing.check_fits(name, method, quantize, how.get("device_map"))
            how = {"device_map": {"": str(place)}, **how}
            how["quantization_config"] = quantizing.settings(quantize, number, place)
        settings = {"dtype": number, "attn_implementation": kernel, **how, **quantizing.dequantized(folder, method)}
        with offloading(offload), quantizing.recorded() if quantize else nullcontext({}) as lines:
            model = load_whole(AutoModelForCausalLM, name, folder, **settings)
        if kernel is None and place.type == "cpu" and attention.suits(model):
            model.set_attn_implementation(attention.register())
        if method and not quantizing.scheme_of(model.config):
            model = model.to(number)  # it was de-quantised, in the type of its scales
        identity = quantizing.known_identity(model, folder, lines, method)
        if parallel:
            identity = identity or fingerprint.identity(model)  # later not all processes ask for it at the same time
        if parallel == FSDP:
            model = shard_layers(model, place)
        elif not how:
            model = model.to(place)
        give_back_freed(model)
        return cls(model, tokenizer, name, quantized=quantize or method, identity=identity, parallel=parallel)

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        """Return itself: a copy of an object around a frozen model shares the model (`copied` copies it)."""
        return self

    def copied(self) -> Self:
        """Return the same model with its own copy of the weights, which may be changed."""
        return type(self)(deepcopy(self.model), self.tokenizer, self.name, quantized=self.quantized)

    @property
    def device(self) -> torch.device:
        """Device that its inputs and states are on: that of the input embeddings, wherever other layers are."""
        return entrance(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors that it reads and writes, and of weights that are not quantised."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """Name of the number type of its weights, after the scheme of those that are quantised: "nf4-bfloat16"."""
        return "-".join(filter(None, [self.quantized, str(self.dtype).removeprefix("torch.")]))

    @property
    def vocabulary(self) -> int:
        """V, number of rows of the embedding matrix."""
        return token_table(self.model).shape[0]

    @property
    def copies(self) -> int:
        """Number of processes that compute the same, each a part of every layer; 1 if each can have its own texts."""
        return PartialState().num_processes if self.parallel == TENSOR else 1

    @cached_property
    def end(self) -> int:
        """Token id that training teaches as the end of an answer: the tokenizer's, or else the model's first."""
        found = self.tokenizer.eos_token_id
        if isinstance(found, int):
            return found
        if not self.ends:
            raise SourceNotFound(f"neither the tokenizer nor the model {self.name!r} has an end-of-sequence token")
        return self.ends[0]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer (`choosing.ends_of`), that of the chat template among them."""
        own = self.template.end if self.template else None
        return tuple(dict.fromkeys([*ends_of(self.model, self.tokenizer), *([] if own is None else [own])]))

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The tokenizer's chat template; None if it has none."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return None
        return ChatTemplate(self.tokenizer, self.vocabulary, self.name)

    @cached_property
    def special(self) -> frozenset[int]:
        """Token ids that are no text."""
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def recurrent(self) -> bool:
        """Whether some layers keep a state that changes in place (linear attention) instead of keys and values."""
        return recurrent(self.config)

    @property
    def transposed(self) -> bool:
        """Whether linear layers keep their weights as (in, out), as those of GPT-2 do."""
        return any(isinstance(module, Conv1D) for module in self.model.modules())

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the token embeddings."""
        return self.model.get_input_embeddings()(ids)

    def states(
        self,
        embeds: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"] | None = None,
        memory: PassMemory | None = None,
        edits: Edits | None = None,
        part: Part | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the final hidden states (the input of the output head) of one pass; gradients reach `embeds`.

        Args:
            embeds: input vectors.
            mask: False at padding; None if there is padding at the end of rows only.
            memory: keys and values of the positions before these; it is extended by these positions.
            edits: edits of the model for these rows (`backbone.edits`).
            part: the layers that run; None for all.

        Raises:
            UsageError: processes share each layer, which cannot be edited then.
        """
        self._check_edits(edits)
        found = run_stack(part or self.model.base_model, embeds.to(self.dtype), mask, memory, edits=edits)
        return found.to(embeds.device)

    def states_together(self, rows: Sequence[StackInput], part: Part | None = None) -> list[Float[Tensor, "B T D"]]:
        """Return the states of several batches, from one forward of all layers or a part; no row affects another."""
        for one in rows:
            self._check_edits(one.edits)
        wanted = [replace(one, embeds=one.embeds.to(self.dtype)) for one in rows]
        found = run_stack_together(part or self.model.base_model, wanted)
        return [states.to(one.embeds.device) for states, one in zip(found, rows, strict=True)]

    def _check_edits(self, edits: Edits | None) -> None:
        if edits is not None and self.parallel == TENSOR:
            raise UsageError(
                "what acts in every layer needs whole layers, and each process has a part of each "
                f"(backbone.parallel={TENSOR}): take backbone.parallel={FSDP}"
            )

    def part(self, begin: int, end: int) -> Part | None:
        """Return the layers `begin` to `end` - 1 as a stack (`backbone.parts`); None for all layers.

        Raises:
            UsageError: the model cannot be run in parts.
        """
        if (begin, end) == (0, self.config.num_hidden_layers):
            return None
        if (begin, end) not in self._parts:
            if self.parallel:
                raise UsageError(
                    f"layers cannot run by themselves in a model whose weights processes share "
                    f"(backbone.parallel={self.parallel}): leave scaffold.recursion.into and out_of at 0"
                )
            self._parts[begin, end] = part_of(self.model, begin, end)
        return self._parts[begin, end]

    def keys_values(self, ids: Int[Tensor, "B T"]) -> KeysValues:
        """Return the keys and values of texts in every layer; padding stands at the end."""
        found = keys_values(self.model.base_model, self.embed(ids).to(self.dtype))
        return KeysValues(tuple((keys.to(ids.device), values.to(ids.device)) for keys, values in found.layers))

    def logits(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Return the logits of every token of the vocabulary."""
        # Flattened to rows: for a slice of a batch PyTorch would copy the whole output matrix once for each text.
        found = self.head(states.reshape(-1, states.shape[-1]))
        return found.reshape(*states.shape[:-1], -1).to(states.device)

    def nll(self, states: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B"]:
        """Return the negative log-likelihood of each row's labels, summed over its scored positions, in fp32.

        `labels[b, t]` is the token that position t should predict, IGNORE where none is scored. Only scored positions
        go through the output head: on a prompt-tuning step that saves a fifth of the work and most of the memory.
        """
        return self.row_losses(states, labels, cross_entropy)

    def row_losses(
        self, states: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"], loss: PositionLoss, *given: Tensor
    ) -> Float[Tensor, "B"]:
        """Return the loss of each row, summed over its scored positions, in fp32 (`nll`).

        Args:
            loss: returns the loss of each position from its logits in fp32, its label and its row of `given`.
            given: further tensors with a row for each scored position, in the order of `labels[labels != IGNORE]`.
        """
        scored = labels != IGNORE
        hidden = states[scored]
        run = _losses if len(hidden) <= SCORED_AT_ONCE else _recomputed_losses
        parts = zip(*(one.split(SCORED_AT_ONCE) for one in (hidden, labels[scored], *given)), strict=True)
        pieces = [run(self, loss, *part) for part in parts] if len(hidden) else []
        losses = torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)
        rows = scored.nonzero()[:, 0]
        return torch.zeros(labels.shape[0], device=losses.device).index_add(0, rows, losses)

    def loss(self, states: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over the scored positions of the batch."""
        return self.nll(states, labels).sum() / (labels != IGNORE).sum()

    def fingerprint(self) -> str:
        """Return a hash over all weights that identifies the model, whatever type it is loaded in.

        It is saved with every scaffold. A quantised model has that of the model that it was made of; one whose
        checkpoint came quantised, and does not say of what, is a model of its own (`quantizing.known_identity`).
        """
        return self._identity or fingerprint.identity(self.model)

    def settled(self) -> Self:
        """Hash the weights now and never again, and pack them (`packing`); return itself.

        For a process that only runs the model, such as a server: there are no gradients from then on.
        """
        self._identity = self.fingerprint()
        packing.pack(self.model)
        return self

    @property
    def variant(self) -> str:
        """Key of what depends on its outputs: its fingerprint, and the scheme of its weights if they are quantised."""
        return "-".join(filter(None, [self.fingerprint(), self.quantized]))

    def checksum(self) -> str:
        """Return a hash over every bit of every weight and buffer, to prove that none has changed."""
        return fingerprint.checksum(self.model)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text to be continued, with the special tokens that the tokenizer puts before it.

        Raises:
            UsageError: the text is not valid Unicode, or has a token without an embedding (`tokenizing.tokenized`).
        """
        ids = tokenized(self.tokenizer, self.vocabulary, text).input_ids
        # An end token was added by the tokenizer: one that is spelled out in the text is read as characters.
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def continuation_ids(self, text: str, continuation: str, before: list[int] | None = None) -> list[int]:
        """Return the token ids of a continuation after `text` and a space, as they are in the whole text.

        Args:
            text: the text before the continuation.
            continuation: the text after it, without the space.
            before: token ids of `text`, if they are known.
        """
        before, whole = self.ids(text) if before is None else before, self.ids(f"{text} {continuation}")
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return tokenized(self.tokenizer, self.vocabulary, f" {continuation}", add_special_tokens=False).input_ids

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def check_room(self, what: str, wanted: int, way_out: str) -> None:
        """Raise `ContextFull` if `wanted` positions are more than the model has."""
        if wanted > self.context:
            raise ContextFull(what, wanted=wanted, room=self.context, way_out=way_out)

    # The frozen model can be the encoder of an input-dependent scaffold (`encoder.Encoder`), without a second model.

    def source_tokens(self, texts: list[str], reserved: int) -> Tokens:
        """Return the texts as token ids, padded at the end and cut to leave `reserved` positions free."""
        rows = [self.ids(text)[: self.context - reserved] for text in texts]
        return pad_right(rows, self.end)


def positions_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the number of positions that a model can read; `UNLIMITED` if nothing says so (relative positions).

    LongRoPE rotates all rows of a batch, and all columns, by other factors as soon as one row is longer than the model
    was pretrained on: rows would depend on each other, and what is kept of a text on its length. So its context ends
    there.
    """
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if (found := getattr(config, name, None) or 0) > 0:
            return min(found, _unscaled_positions(config) or found)
    longest = getattr(tokenizer, "model_max_length", UNLIMITED)
    return min(longest, UNLIMITED) if longest > 0 else UNLIMITED


def _unscaled_positions(config: PreTrainedConfig) -> int:
    """Return the number of positions up to which LongRoPE's factors are the short ones; 0 for other families."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [one for one in (rope, *rope.values()) if isinstance(one, Mapping)]  # one, or one for each kind of layer
    found = [
        one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None) or 0
        for one in kinds
        if one.get("rope_type") == "longrope"
    ]
    return min(found, default=0)


def pad_right(rows: list[list[int]], pad: int) -> Tokens:
    """Return rows of token ids as one batch, padded at the end."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return Tokens(ids, mask)


def cross_entropy(logits: Float[Tensor, "N V"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return the cross-entropy of each position."""
    return F.cross_entropy(logits, labels, reduction="none")


def _losses(lm: FrozenLM, loss: PositionLoss, states: Float[Tensor, "N D"], *given: Tensor) -> Float[Tensor, "N"]:
    """Return the loss of each position."""
    return loss(lm.logits(states).float(), *given)


def _recomputed_losses(
    lm: FrozenLM, loss: PositionLoss, states: Float[Tensor, "N D"], *given: Tensor
) -> Float[Tensor, "N"]:
    """Return `_losses`; the backward pass computes the logits again, so that they are not kept."""
    return checkpoint(_losses, lm, loss, states, *given, use_reentrant=False)


def new_blocks(lm: FrozenLM, layers: int) -> PreTrainedModel:
    """Return a stack of `layers` random blocks like the backbone's, in fp32, with a final norm and no vocabulary.

    With 0 layers it is the final norm alone. Attention and positions are those of the family; dropout is off.
    """
    config = block_config(lm.config, layers)
    kernel = getattr(lm.model.config, "_attn_implementation", None)
    stack = cast(PreTrainedModel, AutoModel.from_config(config, dtype=torch.float32, attn_implementation=kernel))
    stack.set_input_embeddings(nn.Identity())  # its input is vectors only, and it must have no untrained weights
    return stack


def copy_layers(lm: FrozenLM, stack: PreTrainedModel, numbers: Sequence[int]) -> None:
    """Copy the weights of the backbone's blocks with these numbers, counted from 0, into the stack's blocks.

    Raises:
        UsageError: the backbone does not keep its blocks in one list, or not in memory.
    """
    if streamed(lm.model):
        raise UsageError(
            "blocks cannot be copied from weights that are streamed in: start them at random "
            "(scaffold.recursion.copied=false), or leave backbone.device_map and backbone.offload empty"
        )
    source, target = layers_of(lm.model.base_model, lm.config), layers_of(stack, stack.config)
    for block, number in zip(target, numbers, strict=True):
        block.load_state_dict(quantizing.unpacked(source[number]))


def block_config(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return the configuration of a stack of the first `layers` blocks of a model."""
    smaller = deepcopy(config)
    slice_config(smaller, 0, layers)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(smaller, name, 0.0)
    smaller.update({"vocab_size": 1, "pad_token_id": None})
    return smaller
