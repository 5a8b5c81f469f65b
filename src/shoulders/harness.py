"""The model `shoulders` for EleutherAI's lm-evaluation-harness: a frozen model with its scaffold.

    python -m shoulders.harness run --model shoulders --model_args scaffold=runs/first --tasks hellaswag

is the harness's own command line with this model added. In Python: `simple_evaluate(ShouldersLM("runs/first"))`.
Without a scaffold it gives the results of the harness's `hf` model of the same weights.
"""

from collections.abc import Sequence
from typing import Any, cast, final

import torch

from shoulders.answering.models import LoadedModel, model_info
from shoulders.backbone.choosing import Choice
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.tokenizing import tokenized
from shoulders.engine import decode
from shoulders.engine.batches import EncodedQuestion
from shoulders.engine.decode import Scored
from shoulders.engine.inference import POSITIONS_AT_ONCE, Answering, in_groups
from shoulders.errors import ContextFull, SourceNotFound, UsageError
from shoulders.records import Question, ScaffoldInput
from shoulders.scaffolds.base import BARE, Scaffold
from shoulders.scaffolds.storage import Origin

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    missing = SourceNotFound(f"lm-evaluation-harness is missing ({error}): pip install 'shoulders[harness]'")
    raise (SystemExit(f"error: {missing}") if __name__ == "__main__" else missing) from error

LONGEST = 256  # tokens to generate if a task sets no limit, as in the harness's own models
Request = tuple[tuple[str, str], list[int], list[int]]  # context and continuation as texts, and as token ids


@register_model("shoulders")
@final
class ShouldersLM(TemplateLM):
    """A frozen model with a scaffold, without one, or replaced by a rival.

    A context that several continuations share is read once, and requests of similar length share a batch. A prompt
    takes `length` positions of the context. As everywhere in the harness, contexts that are too long lose their
    beginning. Positions of the prompt are not scored. The encoder of ID-PT reads the context of a request.

    Args:
        scaffold: folder or hub name of a run, a scaffold or a rival, "bare", or the scaffold itself.
        backbone: the frozen model, or its name or folder; by default the one named in the scaffold.
        dtype: as in `FrozenLM.load`.
        device: as in `FrozenLM.load`. The harness asks for CUDA by default, which means "auto" on machines without it.
        positions_at_once: size of a batch in positions. The harness's `batch_size` counts requests and is ignored.
        end: also score the end of the text after each continuation, as rank classification does in T0 and in
            `shoulders evaluate`; the harness does not.

    Raises:
        UsageError: neither a scaffold nor a backbone is named, or the name is that of something that does not answer.
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: as `FrozenLM.load` and `Scaffold.load`.
    """

    def __init__(
        self,
        scaffold: str | Scaffold = BARE,
        backbone: str | FrozenLM = "",
        *,
        dtype: str = "auto",
        device: str | None = None,
        positions_at_once: int = POSITIONS_AT_ONCE,
        end: bool = False,
        batch_size: int | str | None = None,  # noqa: ARG002 (the harness gives them to every model)
        max_batch_size: int | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        info = model_info(scaffold) if isinstance(scaffold, str) else None
        place = "auto" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
        if isinstance(backbone, str):
            origin = info.origin if info else cast(Scaffold, scaffold).origin
            backbone = FrozenLM.load(backbone or _backbone_of(origin), dtype=dtype, device=place)
        loaded = info.load(backbone) if info else LoadedModel(backbone, cast(Scaffold, scaffold))
        self.lm, self.scaffold = loaded.lm, loaded.scaffold
        self.backbone, self.info = backbone, info
        self.tokenizer = self.lm.tokenizer
        self.positions_at_once, self.end = positions_at_once, end
        self._device = self.lm.device

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return self.lm.end

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that is read before the first scored token of a text without a context."""
        first = self.lm.tokenizer.bos_token_id
        return first if isinstance(first, int) else self.lm.end

    @property
    def max_length(self) -> int:
        """Number of positions that the prompt leaves to a text."""
        return self.lm.context - self.scaffold.length

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for the harness's cache of requests."""
        return self.lm.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return the description of the model for the harness's results."""
        info = self.info
        return {
            "model_dtype": str(self.lm.dtype),
            "backbone": self.backbone.name,
            "backbone_fingerprint": self.backbone.fingerprint(),
            "scaffold": info.name if info else "",
            "scaffold_kind": info.rival.kind if info and info.rival else self.scaffold.kind,
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the tokenizer's chat template."""
        return str(
            self.lm.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, with the tokenizer's special tokens at the beginning unless the text has them already."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.lm.tokenizer.decode([self.prefix_token_id]))
        tokenizer = self.lm.tokenizer  # special tokens in texts are recognised, as in the harness's own models
        return tokenized(
            tokenizer, self.lm.vocabulary, string, add_special_tokens=add_special_tokens, split_special_tokens=False
        ).input_ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log-likelihoods of continuations; 0 for empty ones, which the harness's own models refuse."""
        something = [request for request in requests if any(request.args)]
        nothing = [(request.args, [self.prefix_token_id], []) for request in requests if not any(request.args)]
        found = iter(super().loglikelihood(something, disable_tqdm))
        others = iter(self._loglikelihood_tokens(nothing))
        return [next(found if any(request.args) else others) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return log-likelihoods of whole texts, in as few windows as the context allows; each token is scored once."""
        owners: list[int] = []
        windows: list[Request] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                before, scored = make_disjoint_window(window)
                owners.append(number)
                windows.append(((self.lm.text(before), ""), before, scored))
        sums = [0.0] * len(requests)
        for number, one in zip(owners, self._scored(windows), strict=True):
            sums[number] += one.log_likelihood
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Return continuations up to a stop sequence; greedy ones unless a task asks for samples."""
        together: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault(repr(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for numbers in together.values():
            texts = [requests[number].args[0] for number in numbers]
            found.update(zip(numbers, self._generated(texts, requests[numbers[0]].args[1]), strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[number])
        return [found[number] for number in range(len(requests))]

    def _loglikelihood_tokens(self, requests: list[Request], **_settings: Any) -> list[tuple[float, bool]]:
        end = [self.lm.end] if self.end else []
        scored = self._scored([(texts, context, [*ids, *end]) for texts, context, ids in requests])
        found = [(one.log_likelihood, one.greedy) for one in scored]
        for (texts, _, _), value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, value)
        return found

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        """Return the scores of requests; continuations of the same context are branches of one row."""
        numbers: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for number, ((text, _), context, ids) in enumerate(requests):
            if not ids:
                continue
            kept = self._kept(context, len(ids) - 1, "a continuation")
            numbers.setdefault((text, tuple(kept)), []).append(number)
        rows = [EncodedQuestion(Question(text), list(ids), 0) for text, ids in numbers]
        several = list(numbers.values())
        extra = [sum(len(requests[number][2]) for number in some) for some in several]

        def read(given: ScaffoldInput, chosen: Sequence[int]) -> list[list[Scored]]:
            some = [[requests[number][2] for number in several[row]] for row in chosen]
            return decode.score(self.lm, self.scaffold, given, some, positions_at_once=self.positions_at_once)

        scores = in_groups(rows, self.lm, self.scaffold, self._how, extra, read)
        found = {number: Scored(0.0, greedy=True) for number, (_, _, ids) in enumerate(requests) if not ids}
        for some, row in zip(several, scores, strict=True):
            found.update(zip(some, row, strict=True))
        return [found[number] for number in range(len(requests))]

    def _generated(self, texts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        """Return continuations of texts by the harness's settings."""
        settings: dict[str, Any] = {**normalize_gen_kwargs(asked, LONGEST)}
        longest = settings.pop("max_gen_toks")
        stops = [stop for stop in handle_stop_sequences(settings.pop("until", None), eos=None) if stop]
        settings.pop("max_length", None)
        if not settings.get("do_sample"):
            settings = {
                name: value for name, value in settings.items() if name not in ("temperature", "top_p", "top_k")
            }
        kept = [self._kept(self.tok_encode(text), longest, "an answer") for text in texts]
        rows = [EncodedQuestion(Question(text), ids, 0) for text, ids in zip(texts, kept, strict=True)]

        def read(given: ScaffoldInput, _: Sequence[int]) -> list[str]:
            ids = self._continued(given, longest, stops, settings)
            return [postprocess_generated_text(self.lm.text(row), stops, None) for row in ids]

        return in_groups(rows, self.lm, self.scaffold, self._how, [longest] * len(rows), read)

    def _continued(
        self, given: ScaffoldInput, longest: int, stops: list[str], settings: dict[str, Any]
    ) -> list[list[int]]:
        """Return the token ids generated after each row, by transformers' loop if ours lacks one of the settings."""
        if not settings.keys() <= {"do_sample", "temperature", "top_k", "top_p"}:
            return decode.generate_with_transformers(
                self.lm, self.scaffold, given, longest=longest, stop_strings=stops or None, **settings
            )
        sampling = {name: value for name, value in settings.items() if name != "do_sample"}
        draws = torch.rand(given.embeds.shape[0], longest, dtype=torch.float64) if settings.get("do_sample") else None
        choice = Choice(self.lm.ends, draws, **sampling)
        return decode.generate(self.lm, self.scaffold, given, longest=longest, stops=stops, choice=choice)

    def _kept(self, context: list[int], after: int, what: str) -> list[int]:
        """Return the end of a context, as much of it as fits before `after` positions."""
        room = self.max_length - after
        if room < 1:
            raise ContextFull(
                f"{what} with a prompt of {self.scaffold.length} vectors and a token before it",
                wanted=self.scaffold.length + 1 + after,
                room=self.lm.context,
                way_out="ask for a shorter one (max_gen_toks), or take a shorter prompt",
            )
        return context[-room:] or [self.prefix_token_id]

    @property
    def _how(self) -> Answering:
        return Answering(positions_at_once=self.positions_at_once)


def _backbone_of(origin: Origin | None) -> str:
    """Return the name of the backbone that a scaffold was trained around."""
    if origin is None:
        raise UsageError("the bare model and a new scaffold name no backbone: add one, --model_args backbone=NAME")
    return origin.backbone


if __name__ == "__main__":
    cli_evaluate()
