"""Append-only logs: what was acknowledged is there after a crash, and half a line never is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.errors import StorageError
from genopt.store.append_log import AppendLog, read_log

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=6)


@given(records=RECORDS, cut=st.integers(0, 200))
@settings(max_examples=60)
def test_a_log_that_a_crash_cut_off_keeps_every_whole_record_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = AppendLog(path)
    ends = [0]
    for record in records:
        log.append(record)
        ends.append(path.stat().st_size)
    size = max(0, ends[-1] - cut)
    os.truncate(path, size)
    whole = sum(end <= size for end in ends) - 1
    assert list(read_log(path)) == records[:whole]
    AppendLog(path).append({"after": "the crash"})
    assert list(read_log(path)) == [*records[:whole], {"after": "the crash"}]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "none.jsonl")) == []
    AppendLog(tmp_path / "deep" / "log.jsonl")
    assert list(read_log(tmp_path / "deep" / "log.jsonl")) == []


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        for step in range(20):
            log.append({"thread": number, "step": step, "filler": "x" * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(record["thread"], record["step"]) for record in read_log(log.path)]
    assert sorted(found) == [(number, step) for number in range(8) for step in range(20)]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"number": 1})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space is left"):
            log.append({"number": 2})
    assert list(read_log(log.path)) == [{"number": 1}]
    log.append({"number": 3})
    assert list(read_log(log.path)) == [{"number": 1}, {"number": 3}]


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"\xff", b""])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 1}\n' + line + b'\n{"number": 3}\n')
    with pytest.raises(StorageError, match=r"Line 2 of .*log\.jsonl is damaged; remove that line"):
        list(read_log(path))


def test_what_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        AppendLog(tmp_path / "folder")
    with pytest.raises(ValueError, match="JSON"):
        AppendLog(tmp_path / "log.jsonl").append({"value": float("nan")})
