"""A Milvus that cannot be reached, opened or used says why, and what to do."""

import pytest

from shoulders.errors import SaveFailed, SourceNotFound, UsageError
from shoulders.retrieval.milvus import Milvus, checked_address


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("wiki", "NAME.db"),
        ("ftp://x", "http://HOST:19530, https://HOST or tcp://HOST"),
        ("http://root:secret@host:19530", "the address of host holds a password"),
    ],
)
def test_addresses(address, said):
    with pytest.raises(UsageError, match=said) as caught:
        checked_address(address)
    assert "secret" not in str(caught.value)


def test_nobody_answers():
    with pytest.raises(SourceNotFound, match=r"no Milvus answers at http://localhost:1 .*: start one there"):
        Milvus("http://localhost:1", timeout=2)


def test_a_file_that_is_open_elsewhere_or_cannot_be_made(own, tmp_path):
    with pytest.raises(UsageError, match=r"own\.db is open in another process"):
        Milvus(str(tmp_path / "own.db"))
    (tmp_path / "file.db").write_text("")
    with pytest.raises(SaveFailed, match=r"cannot use .*file\.db as a collection"):
        Milvus(str(tmp_path / "file.db"))


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        ("auth check failure, please check username and password are correct", UsageError, "refuses the token"),
        ("[Errno 28] No space left on device", SaveFailed, "own.db is full"),
        ("server unavailable: <_MultiThreadedRendezvous", SourceNotFound, "no Milvus answers at"),
        ("vector dimension mismatch, expected 4", UsageError, "refuses: vector dimension mismatch, expected 4$"),
    ],
)
def test_what_a_server_refuses(own, monkeypatch, reason, kind, said):
    from pymilvus import MilvusException

    def refuse(*_, **__):
        raise MilvusException(code=65535, message=reason)

    monkeypatch.setattr(own._client, "delete", refuse)
    with pytest.raises(kind, match=said):
        own.delete("x", [1])
