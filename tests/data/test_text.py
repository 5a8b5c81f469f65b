import gzip
import json

import pytest

from shoulders.data.text import PackedText, held_out, open_text
from shoulders.errors import ContextFull, DataError, SourceNotFound

DOCUMENTS = [f"Document {n} says {'much ' * n}and ends." for n in range(7)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("# Another")
    (tmp_path / "deep" / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:2]))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": DOCUMENTS[2]}) + "\n")
    (tmp_path / "e.bin").write_bytes(b"\x00")
    (tmp_path / "empty.txt").write_text("  \n")
    return tmp_path


def test_texts_of_a_folder_are_read_in_order(folder):
    assert open_text(str(folder)) == ["A text.", DOCUMENTS[2], "# Another", *DOCUMENTS[:2]] or open_text(
        str(folder)
    ) == ["A text.", "# Another", *DOCUMENTS[:2], DOCUMENTS[2]]
    assert open_text(str(folder / "deep" / "c.jsonl")) == DOCUMENTS[:2]


def test_what_is_no_text_is_refused(folder):
    with pytest.raises(SourceNotFound, match="there is no text at"):
        open_text(str(folder / "nope"))
    with pytest.raises(DataError, match=r"holds no text \(\.txt, \.md files"):
        open_text(str(folder / "e.bin"))
    (folder / "broken.jsonl").write_text('{"text": "one"}\n{"no text": 1}\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2 is no JSON object with a `text` field"):
        open_text(str(folder / "broken.jsonl"))


def test_an_epoch_is_every_document_once_without_padding(lm):
    packed = PackedText(DOCUMENTS, lm, length=8, seed=1)
    whole = sorted(token for text in DOCUMENTS for token in [*lm.ids(text), lm.end])
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
    assert sorted(train + development) == sorted(DOCUMENTS)
    assert len(development) == 3
    with pytest.raises(DataError, match=r"name text\.validation"):
        held_out(DOCUMENTS[:1], one_in=3)


def test_a_sequence_that_does_not_fit_is_refused(lm):
    with pytest.raises(ContextFull, match=r"needs 129 positions, .* 128: lower text\.length"):
        PackedText(DOCUMENTS, lm, length=129, seed=0)
