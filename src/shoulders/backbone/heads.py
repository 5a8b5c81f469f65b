"""From final hidden states to the vocabulary, outside the model's own forward pass.

The split is checked, not assumed: some families scale or cap their logits after the output matrix. A head that does not
reproduce the model's own logits is refused when the model is loaded.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from shoulders.errors import SourceNotFound

Head = Callable[[Float[Tensor, "... D"]], Float[Tensor, "... V"]]


def token_table(model: PreTrainedModel) -> Float[Tensor, "V D"]:
    """The rows of a model's input embeddings."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight


def head_of(model: PreTrainedModel) -> Head:
    """The function from states to logits of this model; unchecked on the meta device, which has no values.

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
    # What the configuration announces comes first: on small logits a cap is hard to tell from none.
    heads: list[Head] = []
    if cap:
        heads.append(lambda states: cap * torch.tanh(matrix(states) / cap))
    if factor:
        heads.append(lambda states: matrix(states) * factor)
    if divisor:
        heads.append(lambda states: matrix(states) / divisor)
    heads.append(matrix)
    if model.device.type == "meta":
        return heads[0]
    for head in heads:
        if _agrees(model, head):
            return head
    raise SourceNotFound(
        f"{type(model).__name__} computes its logits in a way shoulders does not know (not by its output embeddings "
        "alone, nor scaled or capped): it cannot serve as backbone"
    )


@torch.no_grad()
def _agrees(model: PreTrainedModel, head: Head) -> bool:
    ids = torch.tensor([[1, 0, 2]], device=model.device)
    embeds = model.get_input_embeddings()(ids)
    own = model(inputs_embeds=embeds, use_cache=False).logits
    ours = head(model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    return torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-3)
