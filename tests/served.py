"""A server over a tiny model in a thread of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from shoulders.answering.spec import AnswerSpec
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.scheduler import Scheduler
from shoulders.records import Placement
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.serving.app import Server
from shoulders.serving.config import ServerConfig
from shoulders.serving.models import Models
from shoulders.serving.service import Service
from tiny import GROUPED, TEXTS

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
LONGEST = 6
GENERATING = ("bare", "prefix", "infix", "suffix", "input", "twice", "deep", "lora")  # what completes texts


def save_readable(folder: Path) -> None:
    """A tiny Llama that writes ASCII, so that different texts look different, with a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = [chr(code) for code in range(33, 127)] + [
        "\u0120",
        "\u010a",
    ]  # space and line break, as bytes are written
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=special, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {**GROUPED, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)


@dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service

    def client(self, key: str = "none", **how: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **how)

    def http(self, key: str = "", **how: object) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, **how)


@contextmanager
def running(service: Service) -> Iterator[Running]:
    """A server in a thread; at the end it stops as at SIGTERM."""
    addresses: list[str] = []
    ready = threading.Event()

    def listening(address: str) -> None:
        addresses.append(address)
        ready.set()

    server = Server(service, listening)
    with service.config.bound() as sockets:
        thread = threading.Thread(target=server.run, args=(sockets,))
        thread.start()
        try:
            assert ready.wait(30)
            yield Running(addresses[0], service)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def prompt(lm: FrozenLM, seed: int, placement: Placement = Placement.PREFIX, length: int = 3) -> SoftPrompt:
    """A soft prompt that changes what the model says."""
    made = SoftPrompt(from_vocabulary(lm, seed)(length), placement)
    with torch.no_grad():
        made.prompt.mul_(2)
    return made


def kept(scaffold: Scaffold, lm: FrozenLM, folder: Path, spec: AnswerSpec | None = None) -> Path:
    """Save a scaffold into a folder."""
    scaffold.made_for(lm, answering=spec.as_json() if spec else {}).save_pretrained(folder)
    return folder


def service_of(lm: FrozenLM, saved: Path, names: tuple[str, ...] = (), **how: object) -> Service:
    """A server's service with some of the saved models; `how` are its settings, `rows` and `queue` the engine's too."""
    engine = {name: how.pop(name) for name in ("rows", "memory_bytes") if name in how}
    config = ServerConfig(port=0, allow=(str(saved),), **how)
    models = Models(lm, allow=config.allow)
    for name in names:
        models.add(name, str(saved / name))
    return Service(lm, Scheduler(lm, queue=config.queue, **engine), models, config)
