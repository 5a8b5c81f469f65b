"""Tasks of depth, made from seeds: texts of one length and form that differ only in how many steps an answer takes.

`depth:hops-2,carries-3,facts-2` names tasks by kind and depth:

- hops: eight people, each of whom sees one other; who is reached in so many looks?
- carries: a sum of two numbers of six digits whose longest run of carries has this length (0 to 5).
- facts: a fact of the bundled suite about a country (1), or about the country that a city is in (2).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import final

from shoulders.data.tasks import DEV, TEST, TRAIN, Record, Records, TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import UnknownName, UsageError

DEPTH = "depth:"  # prefix of a suite's name
SIZES = {TRAIN: 1_000_000, DEV: 2_000, TEST: 2_000}  # records of a split
NAMES = (
    "Adam", "Ann", "Ben", "Bob", "Carl", "Dan", "Dave", "Emma", "Eric", "Eve", "Frank", "Fred", "Jack", "James", "Jane",
    "Jim", "John", "Kate", "Lisa", "Luke", "Mark", "Mary", "Mike", "Nick", "Paul", "Peter", "Rose", "Sam", "Sarah",
    "Tim", "Tom", "Will",
)  # fmt: skip
PEOPLE, DIGITS = 8, 6


def hops(random: Random, depth: int) -> Record:
    """Return a question about a ring of people: who is so many looks away from one of them."""
    ring = random.sample(NAMES, PEOPLE)
    seen = [f"{one} sees {ring[(place + 1) % PEOPLE]}." for place, one in enumerate(ring)]
    random.shuffle(seen)
    begin = random.randrange(PEOPLE)
    return _record(f"{' '.join(seen)} Who is {depth} from {ring[begin]}?", ring[(begin + depth) % PEOPLE])


def carries(random: Random, depth: int) -> Record:
    """Return a sum whose longest run of neighbouring carries has this length."""
    low, high = 10 ** (DIGITS - 1), 10**DIGITS - 1
    while True:
        one, other = random.randint(low, high), random.randint(low, high)
        if one + other <= high and _longest_run(one, other) == depth:
            return _record(f"What is {one} plus {other}?", str(one + other))


def _longest_run(one: int, other: int) -> int:
    run = longest = carry = 0
    for _ in range(DIGITS):
        carry = int(one % 10 + other % 10 + carry > 9)
        run = run + 1 if carry else 0
        longest, one, other = max(longest, run), one // 10, other // 10
    return longest


MADE: Mapping[str, tuple[Callable[[Random, int], Record], range]] = {
    "hops": (hops, range(1, PEOPLE)),
    "carries": (carries, range(DIGITS)),
}
FACTS = "facts"
KIND = re.compile(r"(.+)-(\d+)")


@final
@dataclass(frozen=True, slots=True)
class Generated:
    """The records of a split, each made from its kind, its split and its number alone."""

    make: Callable[[Random, int], Record]
    depth: int
    kind: str
    split: str

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, number: int) -> Record:
        return self.make(Random(f"{self.kind}/{self.split}/{number}"), self.depth)


def depth_task(name: str, wording: Template, bundled: Callable[[str, str], Records]) -> TemplatedTask:
    """Return the task of a name such as "hops-2".

    Args:
        wording: its template.
        bundled: returns the records of a task and split of the bundled suite.

    Raises:
        UnknownName: there is no such kind of task.
        UsageError: it has no such depth.
    """
    found = KIND.fullmatch(name)
    kinds = [*MADE, FACTS]
    if found is None or found[1] not in kinds:
        raise UnknownName("kind of task of depth called", name.partition("-")[0], kinds)
    kind, depth = found[1], int(found[2])
    depths = range(1, 3) if kind == FACTS else MADE[kind][1]
    if depth not in depths:
        raise UsageError(f"{DEPTH}{name}: the depth of {kind} is from {depths.start} to {depths.stop - 1}")
    splits: dict[str, Records] = {}
    for split in SIZES:
        splits[split] = _facts(bundled, split, depth) if kind == FACTS else Generated(MADE[kind][0], depth, kind, split)
    return TemplatedTask(name, "Depth", {wording.name: wording}, splits, query="question")


def _facts(bundled: Callable[[str, str], Records], split: str, depth: int) -> Sequence[Record]:
    """Return facts about countries that have cities in the suite, asked about the country or by way of a city."""
    cities: dict[str, list[str]] = defaultdict(list)
    for part in SIZES:
        for one in _all(bundled("city_country", part)):
            cities[one["choices"][one["label"]]].append(one["city"])
    found: list[Record] = []
    for number, one in enumerate(_all(bundled("country_facts", split))):
        country = one["country"]
        if country in cities:
            city = Random(f"facts/{split}/{number}").choice(sorted(set(cities[country])))
            asked = country if depth == 1 else f"the country of {city}"
            question = one["question"].replace(country, asked)
            found.append({"question": question, "answer": one["answers"][0], "answers": one["answers"]})
    return found


def _all(records: Records) -> list[Record]:
    return [records[number] for number in range(len(records))]


def _record(question: str, answer: str) -> Record:
    return {"question": question, "answer": answer, "answers": [answer]}
