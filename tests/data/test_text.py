import gzip
import itertools
import json

import pytest

from shoulders.data.lines import JsonLines
from shoulders.data.text import Documents, held_out, open_text
from shoulders.errors import ContextFull, DataError, SourceNotFound
from shoulders.training.stream import PackedText

TEXTS = [f"Document {n} says {'much ' * n}and ends." for n in range(7)]
DOCUMENTS = Documents(len(TEXTS), TEXTS.__getitem__)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("# Another")
    (tmp_path / "deep" / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": TEXTS[2]}) + "\n")
    (tmp_path / "e.bin").write_bytes(b"\x00")
    (tmp_path / "empty.txt").write_text("  \n")
    return tmp_path


def test_texts_of_a_folder_are_read_in_order(folder):
    found = list(open_text(str(folder)))
    assert found == ["A text.", TEXTS[2], "# Another", *TEXTS[:2], "  \n"]
    assert list(open_text(str(folder / "deep" / "c.jsonl"))) == TEXTS[:2]


def test_a_document_is_read_when_it_is_needed(folder, monkeypatch):
    """However large a corpus is, no more of it is in memory than where its lines begin."""
    (folder / "large.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    documents = open_text(str(folder / "large.jsonl"))
    read = []
    once = JsonLines._read
    monkeypatch.setattr(JsonLines, "_read", lambda self, number: read.append(number) or once(self, number))
    assert (documents[5], documents[0]) == (TEXTS[5], TEXTS[0])
    assert read == [5, 0]
    with pytest.raises(IndexError):
        documents[7]


def test_what_is_no_text_is_refused(folder):
    with pytest.raises(SourceNotFound, match="there is no text at"):
        open_text(str(folder / "nope"))
    for name in ("e.bin", "empty.txt"):
        with pytest.raises(DataError, match=r"contains no text \(\.txt, \.md files"):
            open_text(str(folder / name))
    (folder / "broken.jsonl").write_text('{"text": "one"}\n\n{"no text": 1}\n{"text": \n')
    documents = open_text(str(folder / "broken.jsonl"))
    with pytest.raises(DataError, match=r"broken\.jsonl, line 3: it has no `text` field"):
        documents[1]
    with pytest.raises(DataError, match=r"broken\.jsonl, line 4: Expecting value"):
        documents[2]


def test_the_encoding_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe".encode("utf-8-sig"))
    (tmp_path / "b.txt").write_bytes("Größe".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes("Größe".encode("latin-1"))
    texts = open_text(str(tmp_path))
    assert [texts[0], texts[1]] == ["Größe", "Größe"]
    with pytest.raises(DataError, match=r"c\.txt: it is not UTF-8"):
        texts[2]


def test_blank_documents_are_passed_over(lm):
    texts = [text for one in TEXTS for text in (" ", one)]
    packed = PackedText(Documents(len(texts), texts.__getitem__), lm, length=8, seed=1)
    tokens = [token for _ in range(20) for token in packed.take()]
    assert lm.end not in [a for a, b in itertools.pairwise(tokens) if b == lm.end]


def test_an_epoch_is_every_document_once_without_padding(lm):
    packed = PackedText(DOCUMENTS, lm, length=8, seed=1)
    whole = sorted(token for text in TEXTS for token in [*lm.ids(text), lm.end])
    count = len(whole) // 8
    taken = [token for _ in range(count) for token in packed.take()]
    assert len(taken) == 8 * count
    texts = lm.text(taken)
    assert sum(f"Document {n} says" in texts for n in range(7)) >= 6
    remaining = list(whole)
    for token in taken:
        remaining.remove(token)
    assert len(remaining) == len(whole) % 8


def test_any_position_is_reached_at_once(lm):
    packed = PackedText(DOCUMENTS, lm, length=9, seed=1)
    positions, taken = [], []
    for _ in range(60):
        positions.append(packed.position)
        taken.append(packed.take())
    again = PackedText(DOCUMENTS, lm, length=9, seed=1)
    for number in (0, 17, 59, 3):
        again.position = positions[number]
        assert again.take() == taken[number]
    assert PackedText(DOCUMENTS, lm, length=9, seed=2).take() != taken[0]


def test_held_out_documents_are_not_trained_on():
    train, development = held_out(DOCUMENTS, one_in=3)
    assert sorted([*train, *development]) == sorted(TEXTS)
    assert list(development) == TEXTS[::3]
    with pytest.raises(DataError, match=r"name text\.validation"):
        held_out(Documents(1, TEXTS.__getitem__), one_in=3)


def test_a_sequence_that_does_not_fit_is_refused(lm):
    with pytest.raises(ContextFull, match=r"needs 129 positions, .* 128: lower text\.length"):
        PackedText(DOCUMENTS, lm, length=129, seed=0)
