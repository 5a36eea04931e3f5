"""The shared store on an S3 server, and the verbs about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from genopt.cli import main
from genopt.errors import StorageError
from genopt.store.remote import Remote
from genopt.store.shared import SharedStore, is_shared, open_root, open_store
from genopt.testing.object_store import object_store

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as uri:
        yield uri


def make(folder: Path) -> tuple[str, ...]:
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(bytes(range(256)) * 50_000)  # more than one part of an upload
    (folder / "empty").touch()
    return ("hf",)


def never(_: Path) -> tuple[str, ...]:
    raise AssertionError("it was built already")


def machine(path: Path, patch: pytest.MonkeyPatch, uri: str) -> SharedStore:
    """The store as a machine with a folder of its own has it."""
    patch.setenv("GENOPT_STORE", str(path))
    found = open_store(uri)
    assert isinstance(found, SharedStore)
    return found


def test_machines_share_artifacts_through_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_shared(bucket)
    built = machine(tmp_path / "one", monkeypatch, bucket).build(KEY, make)
    assert open_root(bucket) == tmp_path / "one"
    found = machine(tmp_path / "two", monkeypatch, bucket).build(KEY, never)
    assert found.digest == built.digest
    assert found.path == str(tmp_path / "two" / "cache" / "artifacts" / built.digest)
    assert Path(found.path, "weights", "a.bin").read_bytes() == Path(built.path, "weights", "a.bin").read_bytes()
    assert Path(found.path, "empty").read_bytes() == b""


def test_the_verbs_list_verify_and_remove(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    built = machine(tmp_path / "one", monkeypatch, bucket).build(OTHER, lambda folder: make(folder) + ((folder / "b").write_text("b") and ()))

    def asked(*words: str, code: int = 0) -> list[dict[str, object]]:
        assert main(["store", *words, "--store", bucket, "--json"]) == code
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found

    assert built.digest in {one["digest"] for one in asked("ls")}
    assert {one["problem"] for one in asked("verify")} == {""}
    Remote(bucket).write(f"artifacts/{built.digest}/b", b"c")
    assert {one["digest"] for one in asked("verify", code=1) if one["problem"]} == {built.digest}
    asked("verify", "--repair")
    assert built.digest not in {one["digest"] for one in asked("ls")}
    assert len(asked("gc", "--keep", "0MB", "--dry-run")) == len(asked("ls")) == 1
    asked("gc", "--keep", "0MB")
    assert asked("ls") == []
    assert main(["store", "ls", "--store", bucket]) == 0


def test_bad_sizes_and_ages_are_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--keep", "much"], ["--older-than", "long"]):
        assert main(["store", "gc", "--store", str(tmp_path), *words]) == 2
    assert "write for example" in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_explained(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPT_STORE", str(tmp_path))
    with pytest.raises(StorageError, match="check the address"):
        open_root(bucket.replace("genopt-test", "no-such-bucket"))
    with pytest.raises(StorageError, match="check the address"):
        open_root("s3://genopt-test/store?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
