"""A double of vLLM's library that computes here."""

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from shoulders.backbone.caches import Memory
from shoulders.backbone.frozen import FrozenLM


@dataclass
class Double:
    """Continues embeddings greedily with the frozen model, one token at a time."""

    lm: FrozenLM
    shift: float = 0.0  # added to the log-probabilities
    pause: float = 0.0
    fails_from: int | None = None  # requests with this number and later ones fail

    def __post_init__(self):
        self.asked, self.aborted, self.arguments, self.down, self.left = [], set(), None, False, 0
        self.errored = False

    def imported(self):
        kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
        return SimpleNamespace(
            AsyncEngineArgs=lambda **given: SimpleNamespace(**given),
            AsyncLLMEngine=SimpleNamespace(from_engine_args=self.started),
            SamplingParams=lambda **given: SimpleNamespace(**given),
            sampling_params=kinds,
        )

    def started(self, arguments):
        self.arguments = arguments
        return self

    def shutdown(self):
        self.down = True

    async def abort(self, names):
        self.aborted.update(names)

    async def generate(self, prompt, params, name):
        self.asked.append((prompt, params))
        if self.fails_from is not None and len(self.asked) > self.fails_from:
            raise ValueError("engine is dead\nlong trace")
        try:
            async for output in self.tokens(prompt, params, name):
                yield output
        finally:
            self.left += 1

    async def tokens(self, prompt, params, name):
        memory, embeds = Memory().single, prompt["prompt_embeds"][None]
        for number in range(params.max_tokens):
            await asyncio.sleep(self.pause)
            if name in self.aborted:
                yield self.output([], [], "abort")
                return
            with torch.no_grad():
                scores = self.lm.logits(self.lm.states(embeds, None, memory)[:, -1])[0].log_softmax(-1)
            allowed = scores.clone()
            if number < params.min_tokens:
                allowed[params.stop_token_ids] = -torch.inf
            token = int(allowed.argmax())
            row = {int(other): SimpleNamespace(logprob=float(scores[other]) + self.shift) for other in (
                *scores.topk(params.logprobs).indices, token)}  # fmt: skip
            ended = "stop" if token in params.stop_token_ids else "length" if number + 1 == params.max_tokens else None
            yield self.output([token], [row], ended)
            if ended:
                return
            embeds = self.lm.embed(torch.tensor([[token]]))

    def output(self, tokens, rows, ended):
        one = SimpleNamespace(token_ids=tokens, logprobs=rows, finish_reason=ended)
        return SimpleNamespace(outputs=[one], num_cached_tokens=1)
