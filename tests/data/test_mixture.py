from collections import Counter

import pytest

from shoulders.data.mixture import Mixture, permute_index
from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import DataError, TemplateFailed, UnknownName


def task(name: str, rows: int, templates: int = 2, jinja: str = "{{n}}? ||| {{n}}") -> TemplatedTask:
    records = [{"n": f"{name}{number}"} for number in range(rows)]
    wordings = {f"w{k}": Template(f"w{k}", str(k), f"{k}: {jinja}", original_task=k == 0) for k in range(templates)}
    return TemplatedTask(name, "Toys", wordings, {"train": records, "validation": []})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_permutation_is_one(size):
    for key in ("a", "b"):
        assert sorted(permute_index(index, size, key) for index in range(size)) == list(range(size))
    if size > 7:
        assert [permute_index(i, size, "a") for i in range(size)] != [permute_index(i, size, "b") for i in range(size)]


def test_a_permutation_is_not_an_order():
    """Neighbours land far apart: the correlation with the identity is small."""
    found = [permute_index(index, 5000, "key") for index in range(5000)]
    mean = 4999 / 2
    covariance = sum((i - mean) * (x - mean) for i, x in enumerate(found))
    assert abs(covariance / sum((i - mean) ** 2 for i in range(5000))) < 0.06


def test_an_epoch_has_every_example_in_every_wording_once():
    mixture = Mixture([task("a", 5), task("b", 30, templates=3)], split="train", seed=3)
    assert len(mixture) == 5 * 2 + 30 * 3
    for epoch in range(2):
        found = Counter(
            (e.task, e.template, e.id) for p in range(len(mixture)) if (e := mixture.example(epoch * len(mixture) + p))
        )
        assert len(found) == len(mixture)
        assert set(found.values()) == {1}


def test_the_order_depends_on_seed_and_epoch_only():
    def order(seed, start=0):
        mixture = Mixture([task("a", 50)], split="train", seed=seed)
        return [mixture.example(start + place).question.text for place in range(100)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, start=100)


def test_large_tasks_are_capped_as_in_t0():
    """Above the cap, cap // templates of each wording; at or below it, all (Sanh et al. 2021)."""
    mixture = Mixture([task("large", 101, templates=3), task("small", 100)], split="train", seed=0, cap=100)
    counts = {(one.task.name, one.wording): one.count for one in mixture.components}
    assert counts == {
        ("large", "w0"): 33, ("large", "w1"): 33, ("large", "w2"): 33, ("small", "w0"): 100, ("small", "w1"): 100,
    }  # fmt: skip
    rows = {e.id for p in range(3 * len(mixture)) if (e := mixture.example(p)).task == "large"}
    assert len(rows) > 80  # another random part each epoch


def test_wordings_can_be_left_out():
    tasks = [task("a", 4), task("b", 4)]
    assert len(Mixture(tasks, split="train", seed=0, without=["a/w1"])) == 12
    assert len(Mixture(tasks, split="train", seed=0, original_only=True)) == 8
    with pytest.raises(DataError, match="the mixture is empty"):
        Mixture(tasks[:1], split="train", seed=0, without=["a/w0", "a/w1"])


def test_empty_and_missing_splits_are_named():
    with pytest.raises(DataError, match="split 'validation' of task 'a' is empty"):
        Mixture([task("a", 4)], split="validation", seed=0)
    with pytest.raises(UnknownName, match="split of task 'a' called 'trian': did you mean 'train'"):
        Mixture([task("a", 4)], split="trian", seed=0)


def test_a_failing_template_is_named():
    broken = task("a", 4, templates=1, jinja="{{m}} ||| x")
    with pytest.raises(
        TemplateFailed, match=r"template 'w0' of task 'a' on example train:\d: .*suite.skip_failing=true"
    ):
        Mixture([broken], split="train", seed=0).example(0)


def test_a_wording_that_is_not_there_cannot_be_left_out():
    with pytest.raises(UnknownName, match="'a/w3': did you mean 'a/w"):
        Mixture([task("a", 4)], split="train", seed=0, without=["a/w3"])


def test_a_cap_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"suite\.cap 2 is less than the 3 templates of task 'a'"):
        Mixture([task("a", 40, templates=3)], split="train", seed=0, cap=2)
