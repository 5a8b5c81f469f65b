"""Which kind of ranker a name stands for: one trained here, DPR's published reader, or a cross-encoder."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, BertConfig, BertModel, BertTokenizer, DPRReader

from shoulders.backbone.devices import pick_device, pick_dtype
from shoulders.backbone.loading import hub_errors, load_tokenizer, load_whole
from shoulders.backbone.sources import locate
from shoulders.errors import UsageError
from shoulders.files import recovered
from shoulders.ranking.cross_encoder import CrossEncoder
from shoulders.ranking.reranker import Reranker
from shoulders.ranking.scoring import Ranker
from shoulders.ranking.storage import DESCRIPTION, model_folder
from shoulders.ranking.towers import Tower

DPR_READER = "DPRReader"
CLASSIFIER = "ForSequenceClassification"


def ranker_named(name: str, *, dtype: str = "auto", device: str = "auto") -> Ranker:
    """What scores passages, by folder, hub id or package.

    Args:
        dtype: of its matrix products.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: it is a model of another kind.
    """
    if (reranker := reranker_named(name, dtype=dtype, device=device)) is not None:
        return reranker.frozen()
    return CrossEncoder.load(name, dtype=dtype, device=device)


def reranker_named(name: str, *, dtype: str = "auto", device: str = "auto") -> Reranker | None:
    """The re-ranker of that name, trained here or published as DPR's reader; None if it is a cross-encoder.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: it is a model of another kind.
    """
    recovered(Path(name).expanduser())
    source = locate(name)
    if folder := _folder(source):
        return Reranker.load(folder, dtype=dtype, device=device)
    with hub_errors(name):
        config = AutoConfig.from_pretrained(source)
    architectures = config.architectures or ["of no known kind"]
    if DPR_READER in architectures:
        return dpr_reader(name, dtype=dtype, device=device)
    if not architectures[0].endswith(CLASSIFIER):
        raise UsageError(
            f"{name!r} is {architectures[0]} and orders no passages: name a re-ranker that was trained here, DPR's "
            "reader, or a cross-encoder (a sequence classifier with one label)"
        )
    return None


def dpr_reader(name: str, *, dtype: str = "auto", device: str = "auto") -> Reranker:
    """DPR's extractive reader as transformers keeps it (`facebook/dpr-reader-*`).

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile: it is not there, or broken.
        UsageError: its states are projected before they are used, which the published ones are not.
    """
    place = pick_device(device)
    source = locate(name)
    reader = load_whole(DPRReader, name, source, body=True, dtype=torch.float32)
    tokenizer = load_tokenizer(name, source, BertTokenizer)
    if reader.config.projection_dim:
        raise UsageError(f"{name!r} projects its states to {reader.config.projection_dim}: only plain ones can be read")
    predictor = reader.span_predictor
    plain = {**reader.config.to_dict(), "model_type": "bert", "architectures": None}  # so that it is saved as a BERT
    model: Any = BertModel(BertConfig.from_dict(plain), add_pooling_layer=False)
    model.load_state_dict(predictor.encoder.bert_model.state_dict())
    made = Reranker(Tower(model.to(place).eval(), tokenizer, name, pick_dtype(dtype, place)))
    heads = {"span": predictor.qa_outputs, "relevance": predictor.qa_classifier}
    weights = {f"{head}.{part}": value for head, layer in heads.items() for part, value in layer.state_dict().items()}
    made.put_heads(weights, name)
    return made


def _folder(source: str) -> Path | None:
    """The folder of a re-ranker that was trained here, fetched if need be; None for other models."""
    if Path(source).exists():
        folder = model_folder(Path(source))
        return folder if (folder / DESCRIPTION).exists() else None
    with hub_errors(source):
        try:
            hf_hub_download(source, DESCRIPTION)
        except EntryNotFoundError:
            return None
        return Path(snapshot_download(source))
