"""Construction of the evidence source that a recipe names."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from pydantic import TypeAdapter

from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import FOLDS
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Answering, Sampling
from shoulders.errors import SourceNotFound, UnknownName, UsageError
from shoulders.evidence.base import ORACLE, SOURCES, Evidence, EvidenceConfig, Room
from shoulders.evidence.candidates import Candidates, FirstPass
from shoulders.evidence.choice import EvidenceChoice, RetrieverChoice
from shoulders.evidence.packing import PackedEvidence, Packer
from shoulders.evidence.reranked import Rankers, Reranked
from shoulders.records import Chat
from shoulders.retrieval.language_model import LIKELIHOODS, NAMED, LanguageModelRanker
from shoulders.scaffolds.base import Scaffold, scaffold_named
from shoulders.scaffolds.storage import read_origin, scaffold_folder
from shoulders.store.cache import ValueCache
from shoulders.store.files import cache_folder

if TYPE_CHECKING:
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.search import Searcher


SCORES = "scores.sqlite"  # in the cache folder
SAMPLED_AT_ONCE = 16_384  # positions; samples are short, and only their keys and values are in memory


def new_source(choice: EvidenceConfig, lm: FrozenLM, prompt: int, lengths: Lengths) -> Evidence | None:
    """Return the source of evidence that a recipe names; None if it names none.

    Args:
        choice: configuration of the evidence.
        lm: the frozen model that reads it.
        prompt: vectors of the prompt that the evidence is read with.
        lengths: maximum lengths of a question with its passages, and of an answer.

    Raises:
        UsageError: no first prompt or no index is named, or prompts for cross-fitting were not trained on the halves.
        SourceNotFound: the index does not exist, or the libraries to search it are not installed.
        ContextFull: there is no room for a question beside prompt and answer.
    """
    if not choice.kind:
        return None
    return SOURCES[choice.kind].new(choice, lm, Room(prompt, lengths.input, lengths.target))


def _retrieved(choice: EvidenceChoice, lm: FrozenLM, room: Room) -> PackedEvidence:
    """Return a source of passages, packed into the same room in training, evaluation and asking."""
    if not choice.index:
        raise UsageError(
            "retrieved passages need an index: build one (shoulders index), then set evidence.index=FOLDER"
        )
    packer = Packer.for_context(lm, room.prompt, room.answer, room.input, truncate=choice.truncate)
    try:
        from shoulders.evidence.retrieved import Oracle, Retrieved
        from shoulders.retrieval.index import Index
    except ImportError as error:
        raise SourceNotFound(f"an index needs {error.name}: pip install 'shoulders[search]'") from None
    index = Index(Path(choice.index).expanduser())
    retrieved = Retrieved(index, choice.passages, packer, new_searcher(choice, index))
    if choice.kind == ORACLE:
        return Oracle(retrieved, choice.distractors)
    return _reranked(choice, retrieved, lm) if choice.reranker else retrieved


def _reranked(choice: EvidenceChoice, found: PackedEvidence, lm: FrozenLM) -> PackedEvidence:
    store = ValueCache(choice.store or cache_folder() / SCORES)
    return Reranked(found, load_rankers(choice.reranker, lm), store, choice.retriever_weight)


def load_rankers(name: str, lm: FrozenLM) -> Rankers:
    """Load the rankers of that name, or the frozen model itself as one ("lm:question", "lm:yes").

    Raises:
        UnknownName: the model ranks in no such way.
        SourceNotFound, HubUnreachable, CorruptFile, UsageError: as `Rankers.load`.
    """
    if not name.startswith(NAMED):
        return Rankers.load(name, device=str(lm.device))
    likelihood = name.removeprefix(NAMED)
    if likelihood not in LIKELIHOODS:
        raise UnknownName("evidence.reranker", name, [f"{NAMED}{one}" for one in LIKELIHOODS])
    return Rankers(name, LanguageModelRanker(lm, likelihood))


def new_searcher(choice: RetrieverChoice, index: "Index") -> "Searcher":
    """Return the searcher of an index that is chosen: a local one, or one on a server.

    Raises:
        SourceNotFound, UsageError: there are no vectors, or not the encoder that made them; the server does not answer,
            or lacks changes of the index.
    """
    from shoulders.retrieval.dense import open_retriever

    if not choice.engine:
        return open_retriever(index, choice.retriever, choice.dense, choice.weight)
    try:
        from shoulders.retrieval.milvus import shared_connection
        from shoulders.retrieval.milvus_search import server_retriever
    except ImportError as error:
        raise SourceNotFound(f"a server (engine) needs {error.name}: pip install 'shoulders[distributed]'") from None
    server = shared_connection(choice.engine)
    served = server_retriever(index, server, choice.retriever, choice.collection, choice.dense, choice.weight)
    if served.stale:
        raise UsageError(
            f"{choice.engine} lacks changes of {index.folder}: run shoulders upload {index.folder} --to {choice.engine}"
        )
    return served.searcher


def _candidates(choice: EvidenceChoice, lm: FrozenLM, _: Room) -> Candidates:
    if not choice.scaffold:
        raise UsageError("candidates are sampled under a first prompt: set evidence.scaffold=RUN, or bare for none")
    store = ValueCache(choice.store)
    across = _across(choice)
    return Candidates(
        new_sampler(choice, lm, choice.scaffold, store),
        choice.count,
        {fold: new_sampler(choice, lm, name, store) for fold, name in across.items()},
        choice.before,
        choice.probabilities,
    )


def new_sampler(choice: EvidenceChoice, lm: FrozenLM, name: str, store: ValueCache) -> FirstPass:
    """Return a sampler of answers: the frozen model under the scaffold of that name."""
    scaffold = load_first_prompt(name, lm)
    key = f"{lm.variant}/{identity(scaffold)}/{choice.temperature}/{choice.longest}/{choice.seed}"
    how = Answering(choice.longest, truncate=True, positions_at_once=SAMPLED_AT_ONCE)
    sampling = Sampling(choice.count, choice.temperature, choice.seed)
    if scaffold.origin is None:
        return FirstPass(lm, scaffold, sampling, how, store, key)
    chat = TypeAdapter(Chat | None).validate_python(scaffold.origin.answering.get("chat"))
    return FirstPass(lm, scaffold, sampling, how, store, key, lambda question: replace(question, chat=chat))


def load_first_prompt(name: str, lm: FrozenLM) -> Scaffold:
    """Return the scaffold that candidates are sampled under."""
    try:
        return scaffold_named(name, lm)
    except SourceNotFound as error:
        raise SourceNotFound(
            f"{error}, and candidates are to be sampled under it: put it back, or name another (evidence.scaffold)"
        ) from error


def _across(choice: EvidenceChoice) -> dict[str, str]:
    """Return by fold the name of the scaffold that was trained on the other fold."""
    if not choice.across:
        return {}
    if len(choice.across) != len(FOLDS):
        raise UsageError(
            f"evidence.across names {len(choice.across)} scaffolds: name two, one trained on each of the folds a, b"
        )
    trained: dict[str, str] = {}
    for name in choice.across:
        fold = (read_origin(scaffold_folder(name)).recipe.get("suite") or {}).get("fold", "")
        trained[fold] = name
    if set(trained) != set(FOLDS):
        raise UsageError(
            f"evidence.across={','.join(choice.across)} were trained on the folds {', '.join(map(repr, trained))}: "
            "train one with suite.fold=a and one with suite.fold=b"
        )
    return {FOLDS[0]: trained[FOLDS[1]], FOLDS[1]: trained[FOLDS[0]]}


@final
@dataclass(frozen=True, slots=True)
class BuiltInKind:
    """A built-in kind of evidence; all share one configuration class."""

    new: Callable[[EvidenceChoice, FrozenLM, Room], Evidence]
    Config: ClassVar[type[EvidenceConfig]] = EvidenceChoice


PASSAGES_KIND, CANDIDATES_KIND = BuiltInKind(_retrieved), BuiltInKind(_candidates)
