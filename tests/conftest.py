"""Tiny random models of several families, saved to folders and loaded as users load theirs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices; threads only get into each other's way

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.main import main
from shoulders.records import Question
from tiny import FAMILIES, TEXTS, save_encoder, save_lm

logging.disable_progress_bar()
settings.register_profile("shoulders", deadline=None)  # a busy machine is no failure
settings.load_profile("shoulders")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are saved."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_lm(folders):
    """A function that loads the tiny model of a family in fp32."""
    loaded: dict[tuple[str, str], FrozenLM] = {}

    def load(family: str, dtype: str = "float32") -> FrozenLM:
        if (family, dtype) not in loaded:
            folder = folders / family
            if not folder.exists():
                save_lm(family, folder)
            loaded[family, dtype] = FrozenLM.load(str(folder), dtype=dtype, device="cpu")
        return loaded[family, dtype]

    return load


@pytest.fixture(params=FAMILIES)
def any_lm(request, tiny_lm) -> FrozenLM:
    """The tiny model of every family in turn."""
    return tiny_lm(request.param)


@pytest.fixture
def lm(tiny_lm) -> FrozenLM:
    """A tiny Llama."""
    return tiny_lm("llama")


@pytest.fixture(scope="session")
def tiny_encoder(folders):
    """A function that loads the tiny encoder of a family."""
    loaded: dict[str, FrozenEncoder] = {}

    def load(family: str) -> FrozenEncoder:
        if family not in loaded:
            folder = folders / f"encoder-{family}"
            save_encoder(family, folder)
            loaded[family] = FrozenEncoder.load(str(folder), dtype="float32", device="cpu")
        return loaded[family]

    return load


@pytest.fixture
def questions() -> list[Question]:
    """Questions of different lengths."""
    return [Question(text) for text in TEXTS[:4]]


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture
def shoulders(monkeypatch, capsys):
    """Runs the command line; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoulders", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def refused(shoulders):
    """Runs the command line on bad input; gives the one line that says what is wrong."""

    def run(*arguments: object) -> str:
        code, _, error = shoulders(*arguments)
        assert code == 2
        assert error.startswith("error: ")
        assert len(error.strip().splitlines()) == 1
        return error

    return run
