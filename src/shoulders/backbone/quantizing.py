"""Quantised weights: the schemes by name, which model a quantised one is, and what its layers are set to.

bitsandbytes or torchao quantises the linear layers while they are read; embeddings, norms and the output layer stay in
the number type of the model. A checkpoint that comes quantised is loaded by transformers, with the library that it asks
for.
"""

import importlib.util
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from shoulders.backbone import fingerprint
from shoulders.backbone.passes import first_embeddings, run_stack
from shoulders.errors import SourceNotFound, UnknownName, UsageError, first_line
from shoulders.store.files import hub_errors

NF4, INT8, TORCHAO = "nf4", "int8", "torchao-int8"
SCHEMES = (NF4, INT8, TORCHAO)
KNOWN = "unquantized_fingerprint"  # in the configuration of a quantised model: which model it is
COMPRESSED_TENSORS = "compressed-tensors"
UNREAD = ("hqq",)  # methods whose checkpoints transformers 5 has no code for, though it names them
BITSANDBYTES = "bitsandbytes"
LIBRARY = {NF4: BITSANDBYTES, INT8: BITSANDBYTES, TORCHAO: "torchao"}
CONFIG, ADAPTER = "config.json", "adapter_config.json"


def settings(scheme: str, dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig | TorchAoConfig:
    """Return transformers' settings of a scheme.

    nf4 is that of Dettmers et al. 2023, with quantised scales (0.52 bytes a weight); int8 that of Dettmers et al. 2022
    (1 byte), whose outliers accelerators multiply in fp16; torchao-int8 is 1 byte with a scale for each row.

    Raises:
        UnknownName: there is no such scheme.
        SourceNotFound: its library is not installed.
        UsageError: the processor lacks the instructions it needs.
    """
    if scheme not in SCHEMES:
        raise UnknownName("scheme of quantised weights (backbone.quantize) called", scheme, SCHEMES)
    if importlib.util.find_spec(LIBRARY[scheme]) is None:
        raise SourceNotFound(
            f"backbone.quantize={scheme} needs {LIBRARY[scheme]}: pip install 'shoulders[quantized]', or leave it empty"
        )
    if scheme == TORCHAO:
        from torchao.quantization import Int8WeightOnlyConfig  # it takes seconds

        return TorchAoConfig(Int8WeightOnlyConfig())
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and not _able("avx2"):
        raise UsageError(
            f"backbone.quantize={scheme} needs a processor with AVX2, which this one lacks: leave it empty, or name an "
            "accelerator (backbone.device)"
        )
    if scheme == INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=NF4, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_fits(name: str, method: str, scheme: str, device_map: Any) -> None:
    """Raise `UsageError` if a checkpoint is quantised already (by `method`), or weights would lie on disk."""
    if method:
        raise UsageError(
            f"{name!r} is quantised already ({method}): leave backbone.quantize empty, or name the unquantised model"
        )
    places = set(device_map.values()) if isinstance(device_map, dict) else set()
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise UsageError(
            f"backbone.quantize={scheme} keeps all weights on accelerators or all in memory, and backbone.device_map "
            "puts some on disk or beside an accelerator: leave one of the two empty"
        )


def _able(unit: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(unit))


def quantized_as(name: str, folder: str) -> str:
    """Return the method that a located checkpoint was quantised by before it was saved; empty if it was not.

    Raises:
        SourceNotFound: transformers does not read the method's weights, or would as if they were not quantised.
    """
    if (Path(folder) / ADAPTER).exists() and not (Path(folder) / CONFIG).exists():
        return ""  # an adapter of PEFT, whose model transformers loads
    with hub_errors(name):
        config = AutoConfig.from_pretrained(folder)
    found = scheme_of(config)
    if found and (found in UNREAD or not AutoHfQuantizer.supports_quant_method(_about(config))):
        raise SourceNotFound(
            f"{name!r} is quantised by {found!r}, whose weights transformers does not read: name the unquantised "
            "model, with backbone.quantize=nf4 or int8"
        )
    return found


def dequantized(folder: str, method: str) -> dict[str, Any]:
    """Return the settings of `from_pretrained` for a checkpoint whose library would de-quantise it at the first use.

    It waits for the first forward of the whole model, of which only the body runs here.
    """
    if method != COMPRESSED_TENSORS:
        return {}
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    return {"config": config}


def scheme_of(config: PreTrainedConfig) -> str:
    """Return the scheme or method that a configuration says weights are quantised by; empty if they are not."""
    about = _about(config)
    if not about:
        return ""
    if about.get("load_in_4bit"):
        return str(about.get("bnb_4bit_quant_type", "fp4"))
    return INT8 if about.get("load_in_8bit") else str(about.get("quant_method", "unknown"))


def _about(config: PreTrainedConfig) -> dict[str, Any]:
    about = getattr(config, "quantization_config", None) or {}
    return about if isinstance(about, dict) else about.to_dict()


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """Yield the line of each weight that is quantised meanwhile (`fingerprint.line`), by name, as it was before.

    Each weight is read and quantised in turn: at no time are all of them held unquantised.
    """
    # They import the libraries.
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize, Bnb8bitQuantize
    from transformers.integrations.torchao import TorchAoQuantize

    lines: dict[str, str] = {}
    own = {kind: kind.convert for kind in (Bnb4bitQuantize, Bnb8bitQuantize, TorchAoQuantize)}
    for kind, convert in own.items():
        kind.convert = _recording(convert, lines)  # type: ignore[method-assign]
    try:
        yield lines
    finally:
        for kind, convert in own.items():
            kind.convert = convert  # type: ignore[method-assign]


def _recording(convert: Callable[..., Any], lines: dict[str, str]) -> Callable[..., Any]:
    def recording(operation: Any, weights: Mapping[str, Any], *arguments: Any, **rest: Any) -> Any:
        for name, weight in weights.items():
            lines[name] = fingerprint.line(name, weight[0] if isinstance(weight, list) else weight)
        return convert(operation, weights, *arguments, **rest)

    return recording


def known_identity(model: PreTrainedModel, folder: str, lines: Mapping[str, str], method: str) -> str:
    """Return which model a quantised one is; empty for a model that is not quantised.

    It is the fingerprint of the unquantised weights: known where they were read (`lines`), and from the configuration
    of a checkpoint that was saved after that. A checkpoint that does not say it is a model of its own, by the tensors
    in its files.
    """
    if lines:
        setattr(model.config, KNOWN, fingerprint.identity(model, lines))
    if method and not hasattr(model.config, KNOWN):
        place = Path(folder)
        if not place.exists():
            place = Path(snapshot_download(folder, allow_patterns=["*.safetensors"], local_files_only=True))
        files = sorted(place.glob("*.safetensors"))
        return fingerprint.of_files(files) if files else fingerprint.identity(model)
    return getattr(model.config, KNOWN, "")


def packed_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that bitsandbytes or torchao quantised."""
    return [
        module
        for module in model.modules()
        if type(module).__module__.startswith(f"{BITSANDBYTES}.") or _wrapped(getattr(module, "weight", None))
    ]


def _wrapped(weight: Any) -> bool:
    """Return whether a weight is a tensor of torchao's, made of several."""
    return is_traceable_wrapper_subclass(weight) and not isinstance(weight, DTensor) and hasattr(weight, "dequantize")


def settle(model: nn.Module) -> None:
    """Make quantised layers give the same results with gradients and without, and keep their weights as they are.

    Out of training bitsandbytes' would, on processors, also quantise their inputs (int8) or reorder their weights
    (nf4). They have no dropout and nothing else that training changes.
    """
    for layer in packed_layers(model):
        if _wrapped(layer.weight) or type(layer).__name__ == "Linear8bitLt":
            layer.forward = partial(_product, layer)
        if not _wrapped(layer.weight):
            layer.train()


def _product(layer: nn.Module, given: Tensor) -> Tensor:
    return _FrozenProduct.apply(given, layer)


class _FrozenProduct(torch.autograd.Function):
    """The product of an int8 layer, of which nothing is kept for the backward pass.

    bitsandbytes keeps the input, for a gradient of the weight that frozen layers do not have, and where activation
    checkpointing does not see it; torchao keeps the de-quantised weight.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        return type(layer).forward(layer, given)

    @staticmethod
    # The base class takes any number of gradients.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ _dequantized(ctx.layer).to(gradient.dtype), None


def _dequantized(layer: nn.Module) -> Tensor:
    """Return the weight of a quantised layer, as a matrix (out, in)."""
    if _wrapped(layer.weight):
        return layer.weight.dequantize()  # type: ignore[operator]
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # it imports bitsandbytes

    return dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))  # type: ignore[arg-type]


def unpacked(block: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a block by name in fp32, those that are quantised de-quantised.

    Raises:
        UsageError: another library quantised them.
    """
    layers = packed_layers(block)
    packed = {name: module for name, module in block.named_modules() if module in layers}
    held = {name: tensor for name, tensor in block.state_dict().items() if fingerprint.owner(name) not in packed}
    for name, module in packed.items():
        weight = _dequantized(module)
        held[f"{name}.weight"] = weight.T if getattr(module, "source_cls", None) is Conv1D else weight
    if wrong := next((name for name, one in held.items() if one.dim() > 1 and not one.is_floating_point()), ""):
        raise UsageError(
            f"the weights of {wrong!r} are quantised in a way that cannot be undone here: copy blocks from the "
            "unquantised model, or start them at random (scaffold.recursion.copied=false)"
        )
    return {name: tensor.float() for name, tensor in held.items()}


PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_trains(model: PreTrainedModel, method: str) -> None:
    """Check that gradients go through every quantised layer of a model; some libraries have kernels that give none.

    What they leave out is not seen in the gradient of a prompt, which also goes around each layer.

    Raises:
        SourceNotFound: a layer gives no gradient.
    """
    cut: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_note_cut, cut, name))
        for name, module in model.named_modules()
        if any(one.dim() > 1 and one.dtype not in PLAIN for one in _own(module))
    ]
    embeds = first_embeddings(model, 3).detach().requires_grad_()
    try:
        with torch.enable_grad():
            states = run_stack(model.base_model, embeds)
            torch.autograd.grad(states.float().square().sum(), embeds)
        reason = f"of {cut[0]} and {len(cut) - 1} others" if cut else ""
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = first_line(error)
    finally:
        for hook in hooks:
            hook.remove()
    if reason:
        raise SourceNotFound(
            f"the weights are quantised by {method}, whose kernels here give no gradient to train a prompt through "
            f"({reason}): name the unquantised model, with backbone.quantize=nf4 or int8"
        )


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _note_cut(cut: list[str], name: str, _: nn.Module, given: tuple[Any, ...], found: Any) -> None:
    """Note a layer whose output has lost the gradient of its input."""
    if any(isinstance(one, Tensor) and one.requires_grad for one in given) and not found.requires_grad:
        cut.append(name)
