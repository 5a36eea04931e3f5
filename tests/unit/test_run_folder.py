"""The run folder: nothing is overwritten, and what was journalled survives a crash."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from genopt.errors import RunFolderError, StorageError
from genopt.store.run_folder import RunFolder


def created(path: Path) -> RunFolder:
    return RunFolder.create(path, "model: m\n", {"python": "3.11"})


def test_a_new_run_folder_has_its_parts(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {"spec.yaml", "environment.json", "records", "profile", "logs", "data"}
    assert run.environment() == {"python": "3.11"}
    assert run.logs.is_dir()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert created(tmp_path).path == tmp_path


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if kind == "run":
        created(path)
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    else:
        path.write_text("mine")
    with pytest.raises(RunFolderError, match="already exists; choose another --out"):
        created(path)


def test_a_run_can_be_opened_again(tmp_path: Path) -> None:
    created(tmp_path / "run")
    assert RunFolder.existing(tmp_path / "run").environment() == {"python": "3.11"}


def test_another_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.existing(tmp_path)


def test_the_journal_keeps_order_and_content(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    assert list(run.events()) == []
    run.append("started", seed=1)
    run.append("finished", name="a\nb")
    events = list(RunFolder.existing(run.path).events())
    assert [(event["event"], event.get("seed"), event.get("name")) for event in events] == [("started", 1, None), ("finished", None, "a\nb")]
    assert events[0]["time"] <= events[1]["time"]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    run.append("started")
    run.append("finished")
    journal = run.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert [event["event"] for event in run.events()] == ["started"]


def test_a_journal_takes_no_nan(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        run.append("measured", value=float("nan"))
    assert list(run.events()) == []


def test_a_journal_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    (run.path / "journal.jsonl").mkdir()
    with pytest.raises(StorageError, match="--out"):
        run.append("started")


@contextlib.contextmanager
def full_at(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond a size while the block runs, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_event_that_found_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    run.append("started")
    with full_at((run.path / "journal.jsonl").stat().st_size + 20), pytest.raises(StorageError):
        run.append("measured", samples="x" * 1000)
    run.append("resumed")
    run.append("finished")
    assert [event["event"] for event in run.events()] == ["started", "resumed", "finished"]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    rows = [{"name": "a", "value": 1.5}, {"name": "b", "value": None}]
    run.write_records("samples", rows)
    assert run.read_records("samples").to_pylist() == rows


def test_records_have_a_column_for_whatever_any_row_has(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    run.write_records("candidates", [{"name": "original"}, {"name": "a", "load_s": 2.0}, {"load_s": 1.0, "ttft_ms": 3.0}])
    expected = {"name": ["original", "a", None], "load_s": [None, 2.0, 1.0], "ttft_ms": [None, None, 3.0]}
    assert run.read_records("candidates").to_pydict() == expected


def test_missing_records_name_those_there_are(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    run.write_records("empty", [])
    with pytest.raises(RunFolderError, match="it has none yet"):
        run.read_records("empty")
    run.write_records("samples", [{"a": 1}])
    with pytest.raises(RunFolderError, match="it has samples"):
        run.read_records("empty")


def test_a_run_has_one_writer_at_a_time(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    assert run.writer() is None
    with run.hold():
        assert run.writer() is not None
        with pytest.raises(RunFolderError, match=r"Another process works on .*run \(process \d+ on "), RunFolder.existing(run.path).hold():
            pass
        run.append("started")
    with RunFolder.existing(run.path).hold():
        pass
    assert run.writer() is None


def test_a_writer_that_was_taken_for_dead_writes_nothing_more(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    with run.hold():
        run.append("started")
        (run.path / ".lease" / "2").touch()
        with pytest.raises(RunFolderError, match="another one continues"):
            run.append("finished")
        with pytest.raises(RunFolderError, match="another one continues"):
            run.write_records("samples", [{"a": 1}])
    assert [event["event"] for event in run.events()] == ["started"]


def test_holding_a_run_drops_what_a_crash_cut_off(tmp_path: Path) -> None:
    run = created(tmp_path / "run")
    run.append("started")
    with (run.path / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "fini')
    with run.hold():
        run.append("resumed")
    assert [event["event"] for event in run.events()] == ["started", "resumed"]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\n", b'{"event": "x", "time"\n', b"\xff\xfe{}\n", b"17\n", b'{"time": 1}\n'])
def test_a_damaged_line_ends_the_journal_only_where_it_is_the_last(tmp_path: Path, damage: bytes) -> None:
    run = created(tmp_path / "run")
    journal = run.path / "journal.jsonl"
    run.append("started")
    with journal.open("ab") as stream:
        stream.write(damage)
    assert [event["event"] for event in run.events()] == ["started"]
    kept = journal.read_bytes()
    with run.hold():
        run.append("resumed")
    assert [event["event"] for event in run.events()] == ["started", "resumed"]
    journal.write_bytes(kept)
    run.append("resumed")
    with pytest.raises(RunFolderError, match=r"Line 2 of .* is damaged; .* sed -i '2,\$d'"):
        list(run.events())
