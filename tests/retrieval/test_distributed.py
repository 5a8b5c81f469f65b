"""An index on Milvus (milvus-lite): what is sent, what is found, and what happens when either is cut short."""

import json
import time
from collections import Counter

import numpy as np
import pytest

from bm25_scores import ExactBM25
from processes import COMMAND, process
from shoulders.errors import SourceNotFound, UsageError
from shoulders.retrieval import milvus_upload as upload
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Index
from shoulders.retrieval.milvus import LIMIT, Milvus
from shoulders.retrieval.milvus_search import MilvusBM25, MilvusVectors
from shoulders.retrieval.milvus_upload import UploadState, UploadTarget, upload_records, upload_vectors, upload_weights
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.search import ScoredPassage, best_first
from shoulders.store.files import lock_folder

K = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for what many tests look at and none changes."""
    return tmp_path_factory.mktemp("milvus")


@pytest.fixture(scope="module")
def index(place, records):
    path = place / "texts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    build([str(path)], place / "index", Cutting(), as_is=True)
    return Index(place / "index")


@pytest.fixture(scope="module")
def server(place):
    with Milvus(str(place / "shared.db")) as server:
        yield server


@pytest.fixture(scope="module")
def sent(index, server):
    """The target that the index was sent to."""
    target = UploadTarget(server, "texts")
    upload_weights(index, target)
    return target


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(upload, "BATCH", 7)
    monkeypatch.setattr(Milvus, "flush", lambda *_: None)  # it waits, and is no part of what these tests look at


def cities(folder, tmp_path, **changed):
    """An index of the folder's texts, some of them changed (or, with None, deleted)."""
    for name, text in changed.items():
        (folder / f"{name}.txt").write_text(text) if text else (folder / f"{name}.txt").unlink()
    build([str(folder)], tmp_path / "index", Cutting(), prune=True)
    return Index(tmp_path / "index")


def the_same(found, wanted, rtol=1e-5):
    """Passages and scores are the same; where scores differ by rounding only, passages may come in either order."""
    for some, exact in zip(found, wanted, strict=True):
        ours, theirs = dict(some), dict(exact)
        np.testing.assert_allclose([one.score for one in some], [one.score for one in exact], rtol=rtol)
        assert some == best_first(some, len(some))
        last = exact[-1].score if exact else 0
        assert all(score <= last * (1 + rtol) for passage, score in ours.items() if passage not in theirs)
        assert all(ours[passage] == pytest.approx(theirs[passage], rel=rtol) for passage in ours if passage in theirs)


def exact(index, k1=0.9, b=0.4):
    return ExactBM25(index.store.passages(), index.analyser, k1, b)


def held(server, collection, index):
    """The passages that a collection holds."""
    return set(server.get(collection, index.store.numbers().tolist()))


def test_the_same_passages_and_scores_as_beside_the_library(index, sent, asked):
    found = MilvusBM25(index, sent.server).search(asked, K)
    wanted = exact(index).search(asked, K)
    the_same(found, wanted)
    assert sum(
        [one.passage for one in a] == [one.passage for one in b] for a, b in zip(found, wanted, strict=True)
    ) > 0.97 * len(asked)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.5)])
def test_with_any_k1_and_b(index, own, asked, k1, b):
    upload_weights(index, UploadTarget(own, "other"), k1, b)
    found = MilvusBM25(index, own, "other").search(asked[:40], K)
    the_same(found, exact(index, k1, b).search(asked[:40], K))


def test_how_passages_are_spread_over_requests_changes_nothing(index, sent, own, asked, monkeypatch):
    monkeypatch.setattr(upload, "BATCH", 317)
    upload_weights(index, UploadTarget(own, "spread"))
    found = MilvusBM25(index, own, "spread").search(asked[:40], K)
    the_same(found, MilvusBM25(index, sent.server).search(asked[:40], K), rtol=1e-7)


def test_queries_of_words_unknown_said_twice_and_endless(index, sent):
    searcher = MilvusBM25(index, sent.server)
    assert searcher.search([], K) == []
    assert searcher.search(["", "the of", "xyzzyq"], K) == [[], [], []]
    queries = ["paris paris river", " ".join(f"word{n}" for n in range(9_999)) + " planet", "planet " * 10_000]
    the_same(searcher.search(queries, K), exact(index).search(queries, K), rtol=1e-4)


def test_more_passages_than_there_are_and_than_milvus_gives(index, sent):
    searcher = MilvusBM25(index, sent.server)
    for k in (index.passages + 1, LIMIT):
        the_same(searcher.search(["the capital city"], k), exact(index).search(["the capital city"], k))
    with pytest.raises(UsageError, match=r"number of passages must be at most 16,384 on Milvus, got 16,385"):
        searcher.search(["city"], LIMIT + 1)


def test_equal_scores_come_by_number_wherever_the_list_is_cut(tmp_path, own):
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"text": f"the words {'x' * n}"}) + "\n" for n in range(1, 300)))
    build([str(path)], tmp_path / "index", Cutting(), as_is=True)
    index = Index(tmp_path / "index")
    upload_weights(index, UploadTarget(own, "same"))
    for k in (1, 7, 298, 299, 400):
        (found,) = MilvusBM25(index, own).search(["words"], k)
        assert [one.passage for one in found] == list(range(1, min(k, 299) + 1))


def test_only_what_changed_is_sent(folder, tmp_path, own, small_batches):
    target = UploadTarget(own, "cities")
    index = cities(folder, tmp_path)
    first = upload_weights(index, target)
    assert (first.added, first.unchanged, first.passages) == (10, 0, 10)
    assert upload_weights(index, target).unchanged == 10
    index = cities(folder, tmp_path, Rome="Rome is a capital. People of Rome are fond of it.", Lima=None)
    assert MilvusBM25(index, own).stale
    told = []
    second = upload_weights(index, target, on_sent=lambda done, all_: told.append((done, all_)))
    assert (second.added, second.deleted, second.renewed, second.unchanged, second.passages) == (1, 2, 0, 8, 9)
    assert told[-1] == (3, 3)
    searcher = MilvusBM25(index, own)
    assert not searcher.stale
    queries = ["Rome proud", "fond people", "Lima", "capital of Oslo"]
    the_same(searcher.search(queries, 9), exact(index).search(queries, 9))


def test_weights_are_sent_anew_when_passages_got_longer(folder, tmp_path, own, small_batches):
    target = UploadTarget(own, "cities")
    upload_weights(cities(folder, tmp_path), target)
    index = cities(folder, tmp_path, Rome="Rome has hills. " * 5)
    sent = upload_weights(index, target)
    assert (sent.added, sent.deleted, sent.renewed, sent.unchanged) == (1, 1, 9, 0)
    queries = ["hills of Rome", "people", "Oslo proud"]
    the_same(MilvusBM25(index, own).search(queries, 10), exact(index).search(queries, 10))
    assert upload_weights(index, target).unchanged == 10


def test_copies_and_passages_without_a_term(folder, tmp_path, own):
    (folder / "a.txt").write_text("the of and")  # its title "a" is a stop word too
    (folder / "Zwilling.txt").write_text("One text twice.")
    (folder / "Zwei.txt").write_text("One text twice.")
    index = cities(folder, tmp_path)
    sent = upload_weights(index, UploadTarget(own, "cities"))
    assert sent.passages == 12
    assert own.count("cities") == 11
    the_same(MilvusBM25(index, own).search(["twice", "Riga"], 5), exact(index).search(["twice", "Riga"], 5))
    (first,) = [one for one in index.store.passages() if "twice" in one.text]
    index = cities(folder, tmp_path, **{first.title: None})  # the copy takes its place
    upload_weights(index, UploadTarget(own, "cities"))
    the_same(MilvusBM25(index, own).search(["twice", "Riga"], 5), exact(index).search(["twice", "Riga"], 5))


class Killed(BaseException):
    """As far as the code can tell, the process ends here."""


@pytest.mark.parametrize("verb", ["upsert", "delete"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("calls", [1, 3])
def test_an_upload_killed_at_any_point_goes_on(folder, tmp_path, own, monkeypatch, small_batches, verb, before, calls):
    monkeypatch.setattr(upload, "BATCH", 2)
    target = UploadTarget(own, "cities")
    upload_weights(cities(folder, tmp_path), target)
    gone = {"Rome": None, "Lima": None, "Oslo": None, "Bern": None, "Riga": None, "Cairo": None, "Paris": None}
    index = cities(folder, tmp_path, **gone, **{f"New{n}": f"New{n} is a long town with a wall." for n in range(9)})
    original, count = getattr(Milvus, verb), Counter()

    def dies(self, collection, given):
        count[verb] += 1
        if count[verb] == calls and before:
            raise Killed
        original(self, collection, given)
        if count[verb] == calls:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Milvus, verb, dies)
        with pytest.raises(Killed):
            upload_weights(index, target)
    assert MilvusBM25(index, own).stale
    (folder / "New0.txt").unlink()  # it may have arrived and may not
    index = cities(folder, tmp_path, New8=None)
    upload_weights(index, target)
    assert held(own, "cities", index) == set(index.store.numbers().tolist())
    assert own.count("cities") == index.passages
    queries = ["town wall", "people of Hanoi", "Lima New1"]
    the_same(MilvusBM25(index, own).search(queries, 10), exact(index).search(queries, 10))


SMALL = "from shoulders.retrieval import milvus_upload; milvus_upload.BATCH = 50"


def test_a_process_killed_for_real_goes_on(index, place, asked, tmp_path):
    address = str(tmp_path / "killed.db")
    known, part = {key for key, _ in upload_records(index.folder)}, 0
    command = ["upload", index.folder, "--to", address, "--collection", "killed"]
    with process(SMALL + COMMAND, *command) as (running, _):
        while part == 0 and running.is_alive():
            time.sleep(0.02)
            for key, path in upload_records(index.folder):
                if key not in known:
                    with UploadState(path) as state:
                        part = int(state.value("passages") or 0)
    with Milvus(address) as server:
        sent = upload_weights(index, UploadTarget(server, "killed"))
        assert 0 < sent.unchanged < index.passages
        assert server.count("killed") == sent.passages == index.passages
        the_same(MilvusBM25(index, server).search(asked[:20], K), exact(index).search(asked[:20], K))


class Kept:
    """Vectors by passage number, as `Vectors` has it."""

    fingerprint = "encoder-1"

    def __init__(self, rows):
        self.rows, self.dimension = rows, len(next(iter(rows.values())))

    def batches(self):
        numbers = sorted(self.rows)
        for start in range(0, len(numbers), 100):
            some = numbers[start : start + 100]
            yield np.array(some, np.int64), np.stack([self.rows[number] for number in some])


class Encoder:
    """Vectors of queries that do not depend on their neighbours."""

    def __init__(self, fingerprint="encoder-1", dimension=16):
        self.name, self.dimension = fingerprint, dimension

    def fingerprint(self):
        return self.name

    def encode_questions(self, queries):
        rows = [np.random.default_rng(list(query.encode())).normal(size=self.dimension) for query in queries]
        return np.stack(rows).astype(np.float32)


@pytest.fixture
def vectors(index):
    values = np.random.default_rng(0)
    return Kept({int(n): values.normal(size=16).astype(np.float32) for n in index.store.numbers()})


def largest(vectors, queries, k):
    numbers = np.array(sorted(vectors.rows))
    scores = Encoder().encode_questions(queries) @ np.stack([vectors.rows[number] for number in numbers]).T
    lists = [[ScoredPassage(int(n), float(s)) for n, s in zip(numbers, row, strict=True)] for row in scores]
    return [best_first(some, k) for some in lists]


def test_vectors_are_found_by_inner_product_and_brought_up_to_date(index, own, vectors, monkeypatch):
    monkeypatch.setattr(upload, "BATCH", 64)
    target, queries = UploadTarget(own, "dense"), ["a river", "a planet", "who?"]
    sent = upload_vectors(index, vectors, target)
    assert sent.added == len(vectors.rows)
    the_same(MilvusVectors(index, Encoder(), own).search(queries, K), largest(vectors, queries, K))
    best = MilvusVectors(index, Encoder(), own).search(queries, 1)[0][0].passage
    changed = {number: row for number, row in vectors.rows.items() if number != best}
    smaller = Kept({**changed, 10**6: np.full(16, 9, np.float32)})
    sent = upload_vectors(index, smaller, target)
    assert (sent.added, sent.deleted) == (1, 1)
    the_same(MilvusVectors(index, Encoder(), own).search(queries, K), largest(smaller, queries, K))
    assert MilvusVectors(index, Encoder(), own).search([], K) == []
    assert MilvusVectors(index, Encoder(), own).search([" "], K) == [[]]


def test_vectors_of_another_encoder_or_dimension(index, own, vectors):
    upload_vectors(index, vectors, UploadTarget(own, "dense"))
    with pytest.raises(UsageError, match="has encoder 'encoder-1', not 'encoder-2'"):
        MilvusVectors(index, Encoder("encoder-2"), own, "dense")
    with pytest.raises(UsageError, match=r"have 8 dimensions, those at .* 16"):
        MilvusVectors(index, Encoder(dimension=8), own, "dense").search(["x"], 1)
    with pytest.raises(UsageError, match="has dimension 16, not 8"):
        upload_vectors(index, Kept({1: np.zeros(8, np.float32)}), UploadTarget(own, "dense"))
    with pytest.raises(UsageError, match="has kind 'vectors', not 'bm25'"):
        upload_weights(index, UploadTarget(own, "dense"))
    with pytest.raises(SourceNotFound, match="was not sent to"):
        MilvusBM25(index, own)


def test_collections_that_do_not_fit(index, sent, folder, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"has k1 0\.9, not 1\.2"):
        upload_weights(index, sent, 1.2, 0.75)
    with pytest.raises(UsageError, match="k1 must be at least 0"):
        upload_weights(index, sent, -1, 0.75)
    other = cities(folder, tmp_path)
    with pytest.raises(UsageError, match="was sent from another index"):
        upload_weights(other, sent)
    with pytest.raises(UsageError, match="was sent from another index"):
        MilvusBM25(other, sent.server, "texts")
    with pytest.raises(SourceNotFound, match=r"there is no collection 'none' at .*shared\.db: send the index there"):
        MilvusBM25(index, sent.server, "none")
    with lock_folder(index.folder / "milvus"), pytest.raises(UsageError, match="is being written by process"):
        upload_weights(index, sent)
    sent.server._client.create_collection("foreign", dimension=4)
    with pytest.raises(UsageError, match=r"'foreign' at .* was not made by `shoulders upload`"):
        upload_weights(index, UploadTarget(sent.server, "foreign"))
    monkeypatch.setattr(type(index.analyser), "VERSION", 3)
    with pytest.raises(UsageError, match=r"analysed by 'english' version 2, .* by 'english' version 3"):
        MilvusBM25(index, sent.server)


def test_two_collections_of_one_index_are_told_apart(folder, tmp_path, own):
    index = cities(folder, tmp_path)
    upload_weights(index, UploadTarget(own, "one"))
    upload_weights(index, UploadTarget(own, "two"), 1.2, 0.75)
    with pytest.raises(UsageError, match=r"was sent to .*: name one \(--collection;.*evidence.collection"):
        MilvusBM25(index, own)
    the_same(MilvusBM25(index, own, "two").search(["Oslo"], 3), exact(index, 1.2, 0.75).search(["Oslo"], 3))


def test_somebody_else_wrote_into_the_collection(folder, tmp_path, own):
    index = cities(folder, tmp_path)
    upload_weights(index, UploadTarget(own, "cities"))
    own.upsert("cities", {10**6: {1: 1.0}})
    with pytest.raises(UsageError, match="holds 11 passages, 10 were sent from here"):
        upload_weights(index, UploadTarget(own, "cities"))
