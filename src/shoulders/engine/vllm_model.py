# pyright: reportMissingImports=false
"""Two passes with a Connector between them as a model of vLLM's, in vLLM's own process.

Both passes share the backbone's weights, and each has its own keys and values. One forward serves requests with
different Connectors, and without one, in one batch. `VllmEngine` writes the Connectors to files and starts vLLM with
this model; nothing else imports it.
# pyright: reportMissingImports=false
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

SETTINGS, CONNECTOR = "shoulders_connectors", "shoulders_connector"  # keys of vLLM's configuration and of a request's
NONE = -1  # number of a request without a Connector
STACKED = {  # layers that vLLM keeps as one matrix, and their parts
    "self_attn.qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    "mlp.gate_up_proj": {"gate_proj": 0, "up_proj": 1},
}
ALONE = ("self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")


class AskedConnectors(LogitsProcessor):
    """The number of the Connector that each request of the batch asks for. It changes no logits.

    vLLM tells its logits processors, and nobody else, which request stands in which row.
    """

    of_rows: ClassVar[dict[int, int]] = {}

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self.of_rows.clear()

    def is_argmax_invariant(self) -> bool:
        """Return that the likeliest token stays the likeliest."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows."""
        if batch_update is None:
            return
        rows = self.of_rows
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, *_ in batch_update.added:
            rows[row] = (params.extra_args or {}).get(CONNECTOR, NONE)
        for one, other, direction in batch_update.moved:
            moved, replaced = rows.pop(one, NONE), rows.pop(other, NONE)
            rows[other] = moved
            if direction == MoveDirectionality.SWAP:
                rows[one] = replaced

    @classmethod
    def of_tokens(cls, count: int, device: torch.device) -> Tensor:
        """Return the number of the Connector of each token; while vLLM measures its memory, the first's for all."""
        metadata = get_forward_context().attn_metadata
        if not metadata:
            return torch.zeros(count, dtype=torch.long, device=device)
        starts: Tensor = next(iter(metadata.values())).query_start_loc
        lengths = starts.diff()
        rows = torch.tensor([cls.of_rows.get(row, NONE) for row in range(len(lengths))], device=device)
        found = torch.full((count,), NONE, device=device)
        asked = rows.repeat_interleave(lengths.to(device))
        found[: len(asked)] = asked
        return found


class TwoCaches(nn.Module):
    """Attention with keys and values of its own in each of two passes.

    Attributes:
        number: the pass that runs, 0 or 1.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.passes = nn.ModuleList([first, second])
        self.number = 0

    def forward(self, *given: Tensor) -> Tensor:
        """Return what is attended to in the pass that runs."""
        return self.passes[self.number](*given)


class ConnectorBlocks(nn.Module):
    """A Connector (`scaffolds.connectors.Connector`) of vLLM's layers.

    Args:
        vllm_config: of the model.
        layers: number of blocks.
        scale: factor of its output.
        first: number of its first block, which no other layer of the model has.
    """

    def __init__(self, vllm_config: VllmConfig, layers: int, scale: float, first: int) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        numbers = range(first, first + layers)
        self.layers = nn.ModuleList(LlamaDecoderLayer(vllm_config, f"connectors.layers.{one}") for one in numbers)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.scale = scale
        self.gate = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.residual = False

    def forward(self, positions: Tensor, states: Tensor, instead_of: Tensor) -> Tensor:
        """Return the vectors of the second pass."""
        hidden, residual = states, None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        output = self.norm(hidden) if residual is None else self.norm(hidden, residual)[0]
        output = output * self.scale
        return instead_of + self.gate.to(output.dtype) * output if self.residual else output

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of a saved Connector."""
        self.norm.weight.data.copy_(weights["blocks.norm.weight"])
        self.residual = "gate" in weights
        if self.residual:
            self.gate.data.copy_(weights["gate"])
        for number, layer in enumerate(self.layers):
            name = f"blocks.layers.{number}"
            for place in ALONE:
                _fill(layer.get_submodule(place), weights[f"{name}.{place}.weight"])
            for place, parts in STACKED.items():
                for part, shard in parts.items():
                    _fill(layer.get_submodule(place), weights[f"{name}.{place.split('.')[0]}.{part}.weight"], shard)


def _fill(module: nn.Module, weight: Tensor, *shard: str | int) -> None:
    """Copy a weight, or the part of it that this process holds."""
    own: Any = module.weight
    loader = getattr(own, "weight_loader", None)
    if loader is None:
        own.data.copy_(weight)
    else:
        loader(own, weight.to(own.dtype), *shard)


class RecursiveLlama(LlamaForCausalLM):
    """Llama, with a second pass for the requests that ask for a Connector."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **rest: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **rest)
        folder = Path(vllm_config.additional_config[SETTINGS])
        depth = len(self.model.layers)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn.attn = TwoCaches(layer.self_attn.attn, _attention_like(layer, vllm_config, depth + number))
        described = json.loads((folder / "connectors.json").read_text(encoding="utf-8"))
        self._files = [folder / one["file"] for one in described]
        self.connectors, number = nn.ModuleList(), 2 * depth
        for one in described:
            self.connectors.append(ConnectorBlocks(vllm_config, one["layers"], one["scale"], number))
            number += one["layers"]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the backbone's weights, and those of the Connectors from their files."""
        loaded = super().load_weights(weights)
        for number, file in enumerate(self._files):
            cast(ConnectorBlocks, self.connectors[number]).load(load_file(file))
        return loaded | {f"connectors.{name}" for name, _ in self.connectors.named_parameters()}

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,  # noqa: ARG002 (of pipelines)
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the states of the second pass for tokens that ask for a Connector, and of the first for others."""
        embeds = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        first = self._pass(0, positions, embeds)
        asked = AskedConnectors.of_tokens(len(embeds), embeds.device)
        if not bool((asked != NONE).any()):
            return first
        vectors = embeds
        for number, connector in enumerate(self.connectors):
            own = (asked == number)[:, None]
            if bool(own.any()):
                vectors = torch.where(own, connector(positions, first, embeds), vectors)
        return torch.where((asked != NONE)[:, None], self._pass(1, positions, vectors), first)

    def _pass(self, number: int, positions: Tensor, vectors: Tensor) -> Tensor:
        for layer in self.model.layers:
            layer.self_attn.attn.number = number
        return self.model(None, positions, None, vectors)


def _attention_like(layer: Any, vllm_config: VllmConfig, number: int) -> nn.Module:
    """Return the attention of a layer once more, with keys and values of its own under another number."""
    own = layer.self_attn
    return type(own.attn)(
        own.num_heads,
        own.head_dim,
        own.scaling,
        num_kv_heads=own.num_kv_heads,
        cache_config=vllm_config.cache_config,
        prefix=f"model.layers.{number}.self_attn.attn",
    )
