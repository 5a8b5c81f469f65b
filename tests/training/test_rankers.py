"""Training retriever and re-ranker: what they learn from, the folds, resuming, and that they learn."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from experiments import reranking

from commands import run
from rankers import save_bert
from shoulders.data.mixture import Mixture, fold_of, total_counts
from shoulders.data.readers import open_suite
from shoulders.errors import DataError, TemplateFailed, UsageError
from shoulders.evidence.reranked import Rankers
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.building import build
from shoulders.retrieval.dense import build_faiss, open_retriever
from shoulders.retrieval.index import Index
from shoulders.retrieval.language_model import LanguageModelRanker
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import Pair, ordering
from shoulders.retrieval.vectors import encode
from shoulders.runs.ranking_recipes import ranking_recipes
from shoulders.runs.recipe import with_overrides
from shoulders.runs.run import Watch
from shoulders.runs.train_ranking import cross_fit, train_ranking
from shoulders.store.cache import ValueCache
from shoulders.store.files import read_json, read_tensors
from shoulders.training.rankers import (
    OwnNegatives,
    PassageTeacher,
    RankingSampler,
    RankingSource,
    RerankerLoss,
    RetrieverLoss,
    ranking_loss,
)

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern", "Cairo", "Hanoi", "Riga", "Accra", "Tunis", "Dakar")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Texts and questions of cities: each has two texts, the answer stands in one of them."""
    folder = tmp_path_factory.mktemp("parks")
    rows = []
    for number, city in enumerate(CITIES, 11):
        rows.append({"id": f"{city}-parks", "title": city, "text": f"{city} has {number} parks and gardens."})
        rows.append({"id": f"{city}-parks-too", "title": city, "text": f"Of the parks of {city} some are old."})
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(folder / "texts.jsonl")], folder / "index", Cutting())
    asked = [
        {"question": f"How many parks has {city}?", "answers": [str(number)]} for number, city in enumerate(CITIES, 11)
    ]
    for part, some in (("train", asked[:10]), ("dev", asked[10:])):
        (folder / f"parks.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    save_bert(folder / "bert")
    return folder


def recipe_of(place, name="reranker", *values):
    """Small enough for a tiny encoder."""
    own = [
        f"encoder={place}/bert", "dtype=float32", "length=60", f"index={place}/index", "depth=8", "negatives=3",
        f"suite.source=qa:{place}/parks", "training.steps=4", "training.batch_size=3", "training.save_every=2",
        "training.evaluate_every=2", "development.depth=5", "training.positions_at_once=300",
    ]  # fmt: skip
    return with_overrides(ranking_recipes()[name], [*own, *values])


def source_of(place, fold="", tasks=None, **values):
    mixture = Mixture(tasks or open_suite(f"qa:{place}/parks"), split="train", seed=0)
    supervision = RankingSampler(Index(place / "index"), depth=8, negatives=values.pop("negatives", 3), **values)
    return RankingSource(mixture, fold, supervision, 5, lambda row: len(row.passages), None)


def test_the_first_passage_has_the_answer_and_no_other_has(place):
    rows = source_of(place).step().parts[0]
    assert len(rows) == 5
    for row in rows:
        words = [text.split() for _, text in row.passages]
        assert row.answers[0] in words[0]
        assert not any(row.answers[0] in some for some in words[1:])
        assert 1 <= len(row.passages) - 1 <= 3


def test_what_is_drawn_depends_on_seed_and_position_alone(place):
    one, other = source_of(place), source_of(place)
    other.position = 4
    late = other.step().parts[0]
    assert [row for row in one.step().parts[0] + one.step().parts[0]][4:9] == late
    assert source_of(place, seed=1).step() != source_of(place, seed=0).step()


def test_the_hardest_negatives_are_the_first_of_the_retrievers_order(place):
    index = Index(place / "index")
    for row in source_of(place, hardest=True).step().parts[0]:
        found = [(hit.title, hit.text) for hit in index.search(row.question, 8)]
        without = [one for one in found if row.answers[0] not in one[1].split()]
        assert list(row.passages[1:]) == without[:3]
        assert list(row.order[1:]) == sorted(row.order[1:], reverse=True)
        assert len(row.order) == len(row.passages)


def test_the_hardest_positive_is_annotated_or_near_the_top_of_the_retrievers_order(place):
    index = Index(place / "index")
    asked = [Mixture(open_suite(f"qa:{place}/parks"), split="train", seed=0).read(n, {}) for n in range(10)]
    far = RankingSampler(index, 8, 1, searcher=Reversed(index.sparse), hardest=True)  # answers stand at the end
    assert far.of(asked, range(10)) == [None] * 10
    named = [
        replace(one, question=replace(one.question, gold=(f"{one.question.query[19:-1]}-parks",))) for one in asked
    ]
    for one, row in zip(named, far.of(named, range(10)), strict=True):
        assert one.references[0] in row.passages[0][1]
        assert row.order[0] == min(row.order)


def test_refreshed_negatives_are_the_first_of_the_re_rankers_own_order(place):
    index, rows = Index(place / "index"), source_of(place, hardest=True, candidates=True).step().parts[0]
    reranker = Reranker.start(f"{place}/bert", length=60, dtype="float32", order_weight=1.0)
    own = OwnNegatives(reranker, every=2, count=3)
    chosen = []
    for number in range(1, 6):
        own.refresh(number)
        before = reranker.frozen()
        chosen.append(own.chosen(rows))
        with torch.no_grad():  # a step
            reranker.gate.add_(3.0)
            reranker.relevance.weight.add_(torch.randn(reranker.relevance.weight.shape, generator=seeded(number)))
        if number not in (3, 5):
            continue
        for row in chosen[-1]:
            hits = index.search(row.question, 8)
            scores = before.scores([Pair(row.question, hit.title, hit.text) for hit in hits])
            order = ordering(scores, [hit.score for hit in hits], order_weight=1.0)
            ranked = [
                (hit.title, hit.text) for _, hit in sorted(zip(order, hits, strict=True), key=lambda one: -one[0])
            ]
            without = [one for one in ranked if row.answers[0] not in one[1].split()]
            assert list(row.passages[1:]) == without[:3]
            assert len(row.order) == len(row.passages) == 4
    assert chosen[0] == chosen[1] == source_of(place, hardest=True).step().parts[0]  # the retriever's
    assert chosen[2] == chosen[3]
    tops = [[set(row.passages[1:]) for row in some] for some in (chosen[0], chosen[2], chosen[4])]
    assert tops[0] != tops[1] != tops[2]
    assert [row.passages[0] for row in chosen[0]] == [row.passages[0] for row in chosen[4]]


def seeded(number):
    return torch.Generator().manual_seed(number)


class Reversed:
    """The passages that another searcher finds, the last first."""

    fingerprint = "reversed"

    def __init__(self, inner):
        self.inner = inner

    def search(self, queries, k):
        return [[one._replace(score=-one.score) for one in reversed(some)] for some in self.inner.search(queries, k)]


def test_an_annotated_passage_is_the_positive_one(place, tmp_path):
    row = {"question": "How many parks has Oslo?", "answers": ["parks"], "gold_passage_ids": ["Oslo-parks-too"]}
    (tmp_path / "gold.train.jsonl").write_text(json.dumps(row) + "\n")
    source = source_of(place, tasks=open_suite(f"qa:{tmp_path}/gold"))
    with pytest.raises(DataError, match="without a passage to learn from"):
        source.step()  # all that is found has the word, so that nothing is negative
    row["answers"] = ["gardens"]
    row["gold_passage_ids"] = ["Oslo-parks-too"]  # annotated, but the answer is not in it: distant supervision
    (tmp_path / "gold.train.jsonl").write_text(json.dumps(row) + "\n")
    found = {row.passages[0][1] for row in source_of(place, tasks=open_suite(f"qa:{tmp_path}/gold")).step().parts[0]}
    assert len(found) > 1  # distributed over all passages that hold it
    assert all("gardens" in text for text in found)
    row["gold_passage_ids"] = ["Oslo-parks"]
    (tmp_path / "gold.train.jsonl").write_text(json.dumps(row) + "\n")
    found = {row.passages[0][1] for row in source_of(place, tasks=open_suite(f"qa:{tmp_path}/gold")).step().parts[0]}
    assert found == {"Oslo has 13 parks and gardens."}


def test_questions_are_learnt_from_in_one_fold_only(place, tmp_path):
    rows = [json.loads(line) for line in (place / "parks.train.jsonl").read_text().splitlines()]
    rows += [{**row, "question": f" how many PARKS has {row['question'].split()[-1]}"} for row in rows[:5]]
    (tmp_path / "parks.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = open_suite(f"qa:{tmp_path}/parks")
    folds = [fold_of(tasks[0].example("train", "question", number)) for number in range(15)]
    twice = {number for number in range(5) if folds[number] != folds[10 + number]}
    assert twice, "the two wordings of a question should fall into different halves at least once"
    a, b = (source_of(place, fold, tasks) for fold in "ab")
    assert not a.questions & b.questions
    assert len(a.questions | b.questions) == 10 - len(twice)
    drawn = {words for _ in range(6) for row in a.step().parts[0] for words in [row.question.lower().split()[-1]]}
    assert drawn == {question.split()[-1] for question in map("{}?".format, a.questions)}
    assert total_counts(a.counts)["in both folds"] > 0
    assert total_counts(a.counts)["of the other fold"] > 0


def test_a_teachers_distribution_is_the_softmax_of_its_likelihoods_computed_once(place, lm, tmp_path):
    rows = source_of(place).step().parts[0][:2]
    ranker = LanguageModelRanker(lm, "answer")
    kept = tmp_path / "taught.sqlite"
    (first, _) = PassageTeacher(ranker, ValueCache(kept), 2.0).taught(rows)
    pairs = [Pair(rows[0].question, *passage, rows[0].answers[0]) for passage in rows[0].passages]
    wanted = (torch.tensor(ranker.scores(pairs)) / 2).softmax(0)
    assert first.taught == pytest.approx(wanted.tolist(), abs=1e-5)
    ranker.scores = lambda *_: pytest.fail("computed again")
    assert PassageTeacher(ranker, ValueCache(kept), 2.0).taught(rows)[0] == first


def test_a_re_ranker_learns_from_a_teacher_without_labels(place, lm, tmp_path):
    values = ("teacher.weight=1", f"teacher.backbone={lm.name}", "teacher.dtype=float32", "span=0")
    recipe = recipe_of(place, "order_reranker", *values, f"teacher.store={tmp_path}/taught.sqlite", "training.steps=1")
    train_ranking(recipe, tmp_path / "run")
    (step,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rows = source_of(place, hardest=True).step().parts[0]  # the first of them are those of the step
    teacher = PassageTeacher(LanguageModelRanker(lm, "answer"), ValueCache(tmp_path / "taught.sqlite"))
    before = [torch.tensor(row.order).log_softmax(0) for row in rows]  # training starts at the retriever's order
    taught = [torch.tensor(row.taught) for row in teacher.taught(rows)]
    wanted = [-(one * some).sum().item() for one, some in zip(taught, before, strict=True)][:3]
    assert step["loss"] == pytest.approx(sum(wanted) / 3, rel=1e-3)
    kept = read_json(tmp_path / "run" / "results.json")["development"]  # the start is scored too
    assert kept["reciprocal_rank"] >= kept["found_reciprocal_rank"]
    with pytest.raises(UsageError, match=r"teacher\.weight=0\.5 is a re-ranker's"):
        recipe_of(place, "retriever", "teacher.weight=0.5")


@pytest.mark.parametrize("kind", ["reranker", "retriever"])
def test_training_learns(place, kind):
    """The loss of the training questions falls; every weight that has a part in it moves."""
    torch.manual_seed(0)
    if kind == "reranker":
        model = RerankerLoss(Reranker.start(f"{place}/bert", length=60, dropout=0.0, dtype="float32"))
    else:
        model = RetrieverLoss(BiEncoder.load(f"{place}/bert", dtype="float32"), scale=1.0)
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
    rows = source_of(place).step().parts[0]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        loss = ranking_loss(model, rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    still = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert not {name for name in still if "pooler" not in name and "token_type" not in name}


def test_in_batch_negatives_are_the_passages_of_all_questions(place):
    model = RetrieverLoss(BiEncoder.load(f"{place}/bert", dtype="float32"), scale=1.0)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    rows = source_of(place, negatives=1).step().parts[0]
    encoder = model.retriever
    questions = encoder.encode_questions([row.question for row in rows])
    passages = [passage for row in rows for passage in row.passages]
    vectors = encoder.encode_passages([title for title, _ in passages], [text for _, text in passages])
    scores = torch.tensor(questions @ vectors.T)
    places = torch.tensor([sum(len(other.passages) for other in rows[:number]) for number in range(len(rows))])
    wanted = torch.nn.functional.cross_entropy(scores, places, reduction="sum")
    assert model(rows).item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["reranker", "order_reranker", "retriever"])
def test_a_resumed_run_is_an_uninterrupted_one(place, tmp_path, name):
    whole = train_ranking(recipe_of(place, name), tmp_path / "whole")
    train_ranking(recipe_of(place, name, "training.decay=none"), tmp_path / "parts")  # another recipe: refused below
    with pytest.raises(UsageError, match="another recipe"):
        train_ranking(recipe_of(place, name), tmp_path / "parts", resume=True)

    class Stop(Exception):
        pass

    def stop(step):
        if step.number == 3:
            raise Stop

    with pytest.raises(Stop):
        train_ranking(recipe_of(place, name), tmp_path / "killed", watch=Watch(on_step=stop))
    resumed = train_ranking(recipe_of(place, name), tmp_path / "killed", resume=True)
    assert resumed.progress == whole.progress
    last = "checkpoints/step-00000004/weights.safetensors"
    one, other = (read_tensors(tmp_path / part / last) for part in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert resumed.result["development"] == whole.result["development"]


def test_a_run_that_stops_between_refreshes_or_at_one_goes_on_as_an_uninterrupted_one(place, tmp_path, monkeypatch):
    values = ("refresh_every=2", "training.steps=6", "training.save_every=0", "training.learning_rate=0.01")
    recipe = recipe_of(place, "order_reranker", *values)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_json()))
    choose, seen = OwnNegatives.chosen, []

    def spied(self, rows):
        found = choose(self, rows)
        if len(seen) + 1 in stops:
            raise KeyboardInterrupt
        seen.append((rows, found))
        return found

    monkeypatch.setattr(OwnNegatives, "chosen", spied)
    stops = set()
    told = run("train", tmp_path / "recipe.json", "--out", tmp_path / "whole")
    assert "refreshed every 2 steps; for the questions until the next refresh at most 48 passages are scored" in told
    uninterrupted = seen.copy()
    seen.clear()
    for stops in ({4}, {5}):  # the weights of step 2 order in step 4, those of step 4 in step 5
        with pytest.raises(KeyboardInterrupt):
            train_ranking(recipe, tmp_path / "killed", resume=bool(seen))
        assert len(seen) == max(stops) - 1
    stops = set()
    train_ranking(recipe, tmp_path / "killed", resume=True)
    assert seen == uninterrupted
    last = "checkpoints/step-00000006/weights.safetensors"
    one, other = (read_tensors(tmp_path / part / last) for part in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    asked = [json.loads(line)["question"] for line in (place / "parks.train.jsonl").read_text().splitlines()]
    assert {row.question for rows, _ in seen for row in rows} <= set(asked)
    assert all(row.answers[0] not in text.split() for _, rows in seen for row in rows for _, text in row.passages[1:])
    assert any(found[0].passages != rows[0].passages[:4] for rows, found in seen)


def test_no_training_question_is_ranked_by_a_reranker_that_saw_it(place, tmp_path):
    found = cross_fit(recipe_of(place), tmp_path / "rr", watch=lambda _: nullcontext(Watch()))
    assert set(found) == {"a", "b", "all"}
    rankers = Rankers.load(str(tmp_path / "rr"), device="cpu")
    task = open_suite(f"qa:{place}/parks")[0]
    examples = [task.example("train", "question", number) for number in range(10)]
    for example in examples:
        fold = fold_of(example)
        question = example.question.query
        assert question not in rankers.ranker_of(fold).seen
        assert question in rankers.ranker_of("").seen
        assert question in rankers.ranker_of("ab".replace(fold, "")).seen
        rankers.check_unseen([question], fold)
        with pytest.raises(UsageError, match="was trained on"):
            Rankers.load(str(tmp_path / "rr" / "all"), device="cpu").check_unseen([question], fold)
    fold = replace(recipe_of(place).suite, fold="a")
    with pytest.raises(UsageError, match=r"leave suite\.fold=a out"):
        cross_fit(replace(recipe_of(place), suite=fold), tmp_path / "x", watch=lambda _: nullcontext(Watch()))


def test_cross_fitting_from_the_command_line_goes_on_where_it_was(place, tmp_path, refused):
    recipe = recipe_of(place)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_json()))
    command = ("train", tmp_path / "recipe.json", "--cross-fit", "--out", tmp_path / "rr")
    told = run(*command)
    for row in ("as found", "a, step", "b, step", "all, step"):
        assert row in told
    measured = read_json(tmp_path / "rr" / "all" / "results.json")["development"]
    assert measured["retriever_weights"]["0.0"]["reciprocal_rank"] == measured["reciprocal_rank"]
    best = measured["best_retriever_weight"]
    assert (f"retriever_weight={best}" in told) is bool(best)
    kept = {part: (tmp_path / "rr" / part / "results.json").read_bytes() for part in ("a", "b", "all")}
    run(*command, "--resume")
    assert kept == {part: (tmp_path / "rr" / part / "results.json").read_bytes() for part in kept}
    assert f"error: {tmp_path / 'rr'} holds runs (a at step 4): go on with --resume" in refused(*command)
    other = refused(*command, "training.steps=5", "--resume")
    assert f"error: {tmp_path / 'rr'} holds a run of another recipe (see its a/recipe.json): name another" in other
    for part in ("a", "all"):  # killed in the second
        shutil.rmtree(tmp_path / "rr" / part)
    assert f"error: {tmp_path / 'rr'} holds runs (b at step 4): go on with --resume" in refused(*command)
    assert not (tmp_path / "rr" / "a").exists()  # refused before anything is trained
    assert "re-ranker to cross-fit" in refused("train", "reader", "--cross-fit")


WORDED = """
templates:
  a: !Template
    answer_choices: null
    id: aaaaaaaa
    jinja: "{% if n == 12 %}{{n.nothing}}{% endif %}How many parks has {{city}}? ||| {{n}}"
    metadata: !TemplateMetadata {metrics: [Squad], original_task: true}
    name: plain
  b: !Template
    answer_choices: null
    id: bbbbbbbb
    jinja: "{{n.nothing}} ||| {{n}}"
    metadata: !TemplateMetadata {metrics: [Squad], original_task: true}
    name: broken
"""


def test_all_values_of_the_suite_count(place, tmp_path):
    """Templates that fail are left out where the recipe says so, on questions to learn from and to be measured on."""
    suite = tmp_path / "worded"
    suite.mkdir()
    (suite / "templates.yaml").write_text(WORDED)
    (suite / "card.json").write_text(json.dumps({"name": "worded", "cluster": "Parks"}))
    rows = "".join(json.dumps({"city": city, "n": number}) + "\n" for number, city in enumerate(CITIES, 11))
    for split in ("train", "validation"):
        (suite / f"{split}.jsonl").write_text(rows)
    own = [f"suite.source={suite}", "suite.without_templates=worded/broken"]
    with pytest.raises(TemplateFailed, match="broken"):
        train_ranking(recipe_of(place, "reranker", own[0]), tmp_path / "all")
    with pytest.raises(TemplateFailed, match="plain"):
        train_ranking(recipe_of(place, "reranker", *own), tmp_path / "strict")
    found = train_ranking(recipe_of(place, "reranker", *own, "suite.skip_failing=yes"), tmp_path / "skipping")
    assert sum(one.get("template failed", 0) for one in found.progress.counts.values()) > 0
    assert found.result["training_questions"] == found.result["development"]["questions"] == len(CITIES) - 1


def test_one_process_tells(place, tmp_path, monkeypatch):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_of(place).as_json()))
    monkeypatch.setattr("accelerate.PartialState", lambda: SimpleNamespace(is_main_process=False))
    assert "MRR" not in run("train", tmp_path / "recipe.json", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()


class Spied:
    """A retriever that is counted."""

    asked = []

    def __init__(self, searcher):
        self.searcher = searcher

    def search(self, queries, k):
        self.asked.append((list(queries), k))
        return self.searcher.search(queries, k)


@pytest.mark.parametrize("name", ["reranker", "retriever"])
def test_what_it_learns_from_is_what_the_recipes_retriever_finds(place, tmp_path, name, monkeypatch):
    made = []

    def spied(*args):
        made.append((args[1:], Spied(open_retriever(*args))))
        return made[-1][1]

    folder = tmp_path / "index"
    shutil.copytree(place / "index", folder)
    index = Index(folder)
    build_faiss(encode(index, BiEncoder.load(f"{place}/bert", device="cpu"), "tiny"))
    monkeypatch.setattr("shoulders.retrieval.dense.open_retriever", spied)
    values = [f"index={folder}", "retriever=hybrid", "dense=tiny", "weight=3"]
    recipe = recipe_of(place, name, *values)
    Spied.asked.clear()
    found = train_ranking(recipe, tmp_path / "run").result
    assert [how for how, _ in made] == [("hybrid", "tiny", 3.0)]
    depths = [k for _, k in Spied.asked]
    assert depths[0] == recipe.development.depth
    assert set(depths[1:]) == {recipe.depth}
    assert found["recipe"]["retriever"] == "hybrid"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["retriever=dens"], "'dense'"),
        (["weight=-1"], "weight is -1.0: it must be at least 0"),
        (["retriever=dense"], "shoulders encode"),
        (["engine=nowhere"], "not an address of Milvus"),
        (["index="], "shoulders index"),
        (["negatives=8"], "negatives is 8 and depth 8"),
        (["kind=reader"], "did you mean"),
        (["length=2"], "DPR's is 350"),
        (["order_weight=-1"], "order_weight is -1.0: it must be at least 0"),
        (["kind=retriever", "order_weight=1"], "order_weight=1.0 is a re-ranker's"),
        (["kind=retriever", "dropout=0"], "dropout=0.0 is a re-ranker's: leave it at 0.1"),
        (["dropout=1"], "dropout must be at least 0 and below 1"),
        (["refresh_every=-1"], "refresh_every is -1: it is a number of steps"),
        (["refresh_every=2"], "refresh_every=2 is for a re-ranker that starts at the retriever's order"),
        (["order_weight=1", "refresh_every=4"], "refresh_every is 4 and training.steps 4"),
        (["order_weight=1", "refresh_every=2", "negatives=7"], "chooses 7 negatives of 8 passages"),
        (["development.split=test"], "no split"),
    ],
)
def test_bad_values_are_refused(place, tmp_path, values, told):
    with pytest.raises(UsageError) as caught:
        train_ranking(recipe_of(place, "reranker", *values), tmp_path / "run")
    assert told in str(caught.value) or "split" in str(caught.value)


def test_an_order_is_measured_by_what_reaches_the_models_input(place, lm, tmp_path, monkeypatch):
    kept = {}
    for name in ("lm:question", "order"):
        if name == "order":
            train_ranking(recipe_of(place, "order_reranker", "training.steps=1"), tmp_path / name)
        reranker = str(tmp_path / name) if name == "order" else name
        out = tmp_path / f"{name}.json"
        given = [place / "index", reranker, "--data", place, "--set", "parks:validation", "--out", out, "--depth", 6]
        monkeypatch.setattr("sys.argv", [str(one) for one in ("", *given, "--backbone", lm.name, "--room", 60)])
        reranking.main()
        kept[name] = read_json(out)["sets"]["sparse parks.validation"]
    for one in kept.values():
        assert one["asked"] == one["questions"] == 2
        assert one["at_input"]["gain"] == one["at_input"]["re-ranked"] - one["at_input"]["found"]
        assert one["at_input"]["interval"][0] <= one["at_input"]["gain"] <= one["at_input"]["interval"][1]
    assert kept["order"]["at_input"]["found"] == kept["lm:question"]["at_input"]["found"]
    assert "retriever_weights" not in kept["order"]  # it has its own
    assert kept["lm:question"]["alone"]["recall"] == kept["lm:question"]["recall"]
