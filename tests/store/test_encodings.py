"""Bytes to text: every encoding that is declared or marked, and what nothing tells the encoding of."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoulders.errors import CorruptFile, DataError
from shoulders.store.encodings import MARKS, decode, decode_strict
from shoulders.store.files import read_json

some = settings(max_examples=60, deadline=None, database=None)
RUSSIAN = (
    "Река начинается в горах, течёт через три города и впадает в холодное море. Весной вода поднимается так высоко, "  # noqa: RUF001
    "что мосты закрывают на целую неделю, а жители ездят друг к другу на лодках."  # noqa: RUF001
)


@some
@given(text=st.text(), mark=st.sampled_from(list(MARKS)))
def test_a_byte_order_mark_tells_the_encoding_and_is_no_part_of_the_text(text, mark):
    assume(not text.startswith("\0"))  # after UTF-16's mark it is UTF-32's
    assert decode(mark + text.encode(MARKS[mark]), "windows-1251") == (text, 0)


@some
@given(content=st.binary(max_size=60), declared=st.sampled_from(["", "utf-8", "cp1252", "cp932", "gb18030", "cp1251"]))
def test_no_character_is_lost_without_a_word(content, declared):
    try:
        text, broken = decode(content, declared)
    except DataError:  # told, not lost
        return
    if not content.startswith(tuple(MARKS)):
        assert text.count("\ufffd") <= broken + content.count("\ufffd".encode())


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp866"])
def test_a_language_tells_its_encoding(encoding):
    assert decode(RUSSIAN.encode(encoding)) == (RUSSIAN, 0)


@pytest.mark.parametrize("text", ["Un été à Nîmes", "Příliš žluťoučký kůň", "Straße, Größe, Übermut"])
@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "iso8859-2", "cp850", "mac-roman"])
def test_what_may_be_several_encodings_is_refused(text, encoding):
    """These bytes are words in more than one of them."""
    with pytest.raises(DataError, match=r"its encoding cannot be detected: convert it \(iconv"):
        decode(text.encode(encoding, "ignore"))


def test_bytes_that_contradict_a_label_win():
    utf_8 = "“Zoë’s” naïve café"  # noqa: RUF001
    assert decode(utf_8.encode(), "cp1252") == (utf_8, 0)
    assert decode("東京へ行く".encode("cp932"), "cp932") == ("東京へ行く", 0)
    assert decode("Ã«".encode("cp1252"), "cp1252") == ("Ã«", 0)  # one letter of UTF-8 by chance
    with pytest.raises(DataError, match=r"\(declared as utf-8\)"):
        decode("café".encode("latin-1"), "utf-8")


def test_a_few_broken_characters_are_counted():
    content = "äöü".encode() * 20 + b"\xff"
    assert decode(content) == ("äöü" * 20 + "\ufffd", 1)
    with pytest.raises(DataError, match="1 of its characters are not UTF-8"):
        decode_strict(content)


@pytest.mark.parametrize("content", [b"\0\5\x16\7\0\2" * 9, "plain".encode("utf-16-le"), bytes(range(256))])
def test_what_is_no_text_is_refused(content):
    with pytest.raises(DataError, match=r"it is not text: \d+ of its \d+ bytes are control characters"):
        decode(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_with_a_mark(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps({"näme": "Zoë"}, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == {"näme": "Zoë"}
    (tmp_path / "b.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(CorruptFile, match=r"b\.json is not JSON: it is not UTF-8"):
        read_json(tmp_path / "b.json")
