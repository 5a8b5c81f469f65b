"""The log of a run when it goes on, and when it cannot be written."""

import errno
import json
from pathlib import Path

import pytest

from shoulders.errors import SaveFailed
from shoulders.training import log as log_module
from shoulders.training.log import LOG, RunLog, read_log
from shoulders.training.loop import Step


def step(number: int) -> Step:
    return Step(number, 1.0 / number, 0.1, 1.0, 10, 0.5)


def logged(folder: Path, numbers: range, resumed_at: int = 0) -> None:
    with RunLog(folder, resumed_at) as log:
        for number in numbers:
            log(step(number))


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_that_goes_on_drops_what_lay_beyond(tmp_path):
    logged(tmp_path, range(1, 6))
    logged(tmp_path, range(4, 8), resumed_at=3)
    assert [line["number"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert {path.name for path in tmp_path.iterdir()} <= {LOG, "tensorboard"}


def test_a_disk_full_on_resume_costs_no_line(tmp_path, monkeypatch):
    """The log is never emptied to be written again."""
    logged(tmp_path, range(1, 6))

    def half(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:10])
        full()

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(SaveFailed, match=rf"{tmp_path}.*No space left on device: free space there, or name another"):
        RunLog(tmp_path, resumed_at=4)
    assert [line["number"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_disk_full_while_logging_is_said(tmp_path, monkeypatch):
    with pytest.raises(SaveFailed, match="free space there"), RunLog(tmp_path) as log:  # noqa: PT012
        log(step(1))
        monkeypatch.setattr(json, "dumps", lambda *_, **__: "{}")
        monkeypatch.setattr(log, "_lines", Unwritable(log._lines))
        log(step(2))


def test_what_stops_a_run_is_told_even_where_the_log_cannot_be_closed(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), RunLog(tmp_path) as log:  # noqa: PT012
        monkeypatch.setattr(log, "_lines", Unwritable(log._lines))
        raise ZeroDivisionError


def test_curves_that_cannot_be_written_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "_tensorboard", full)
    with pytest.raises(SaveFailed, match="free space there"):
        RunLog(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SaveFailed, match="name another place"):
        RunLog(tmp_path / "file")


class Unwritable:
    """An open file on a disk that is full."""

    write = flush = full

    def __init__(self, file) -> None:
        self.file = file

    def close(self) -> None:
        self.file.close()
        full()
