"""The store: work is done once, and a crash or a full disk leaves nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import SpecError, StageCrashedError, StageTimeoutError, StorageError
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore, default_root, folder_digest, is_whole, stamps, step_key
from genopt.store.files import write_atomically
from genopt.store.folders import visible_files
from genopt.store.inventory import Inventory
from genopt.store.lease import Lease
from genopt.store.shared import open_root

KEY = "a" * 64


def make(folder: Path) -> tuple[str, ...]:
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(b"12345")
    return ("hf",)


def full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files(root: Path) -> list[str]:
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in found if path.parts[0] != "locks")


def test_an_artifact_is_named_by_its_bytes_and_found_by_its_step(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built = store.build(KEY, make)
    assert (built.bytes, built.traits) == (5, ("hf",))
    assert Path(built.path).name == built.digest == folder_digest(Path(built.path))[0]
    assert store.find(KEY) == built
    assert not list((tmp_path / "building").iterdir())


def test_two_steps_with_the_same_bytes_share_them(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.build(KEY, make).path == store.build("b" * 64, make).path


def test_an_artifact_whose_files_were_removed_is_built_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    path = Path(store.build(KEY, make).path)
    path.rename(tmp_path / "elsewhere")
    assert store.find(KEY) is None
    assert store.build(KEY, make).path == str(path)


def test_threads_build_a_step_once(tmp_path: Path) -> None:
    calls, start = [], threading.Barrier(6)

    def counted(folder: Path) -> tuple[str, ...]:
        calls.append(folder)
        return make(folder)

    def build() -> None:
        start.wait()
        digests.append(ArtifactStore(tmp_path).build(KEY, counted).digest)

    digests: list[str] = []
    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(digests) == 6
    assert len(set(digests)) == 1


BUILDER = """
import os, sys
from pathlib import Path
from genopt.store.artifacts import ArtifactStore
def make(folder):
    with open(sys.argv[3], "a") as calls: calls.write("x")
    (folder / "half").write_bytes(b"12")
    if sys.argv[2] == "die": os._exit(9)
    return ()
ArtifactStore(Path(sys.argv[1])).build("a" * 64, make)
"""


def start_builder(store: Path, how: str, calls: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(store), how, str(calls)])


def test_processes_build_a_step_once(tmp_path: Path) -> None:
    builders = [start_builder(tmp_path / "store", "live", tmp_path / "calls") for _ in range(3)]
    assert [builder.wait(timeout=30) for builder in builders] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_a_builder_that_dies_leaves_no_artifact_and_no_lock(tmp_path: Path) -> None:
    assert start_builder(tmp_path / "store", "die", tmp_path / "calls").wait(timeout=30) == 9
    store = ArtifactStore(tmp_path / "store")
    assert store.find(KEY) is None
    store.discard_unfinished()
    assert files(tmp_path / "store") == []
    assert store.build(KEY, make).bytes == 5


def test_one_who_waits_succeeds_a_builder_that_dies(tmp_path: Path) -> None:
    script = BUILDER.replace('if sys.argv[2] == "die": os._exit(9)', "print(flush=True); input()")
    command = [sys.executable, "-c", script, str(tmp_path / "store"), "hang", str(tmp_path / "calls")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        with pytest.raises(StageTimeoutError, match=f"builds the same step .process {builder.pid}"):
            ArtifactStore(tmp_path / "store").build(KEY, make, wait_s=0)
        found: list[int] = []
        waiting = threading.Thread(target=lambda: found.append(ArtifactStore(tmp_path / "store").build(KEY, make).bytes))
        waiting.start()
        builder.kill()
        builder.wait()
        waiting.join(timeout=10)
    assert found == [5]
    assert list((tmp_path / "store" / "building").iterdir()) == [], "what the dead one left is swept up"


SUCCESSOR = """
import functools, sys
from pathlib import Path
from genopt.store import artifacts
from genopt.store.lease import Lease
artifacts.Lease = functools.partial(Lease, machine="another", beat_s=0.05, stale_s=0.2)
def make(folder):
    (folder / "weights").mkdir()
    print(flush=True)
    input()
    (folder / "weights" / "a.bin").write_bytes(b"12345")
    return ()
artifacts.ArtifactStore(Path(sys.argv[1])).build("a" * 64, make)
"""


@pytest.mark.parametrize("notices", [True, False])
def test_a_builder_that_was_taken_for_dead_leaves_its_successor_alone_and_waits_for_it(tmp_path: Path, notices: bool) -> None:
    """The successor is a process as on another machine, to which this one looks dead as it gives no sign of life for 0.2 seconds."""
    turns: list[str] = []
    successors: list[subprocess.Popen[bytes]] = []

    class Watched(ArtifactStore):
        @contextlib.contextmanager
        def _alone(self, key: str, until: float | None) -> Iterator[Lease]:
            turns.append(key)
            if len(turns) == 2:  # the first turn is over, and has removed whatever it removes
                assert successors[0].stdin is not None
                successors[0].stdin.write(b"\n")
                successors[0].stdin.flush()
            with super()._alone(key, until) as lease:
                yield lease

    def stalled(folder: Path) -> tuple[str, ...]:
        (folder / "half").touch()
        command = [sys.executable, "-c", SUCCESSOR, str(tmp_path)]
        successors.append(running.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)))
        assert successors[0].stdout is not None
        assert successors[0].stdout.readline() == b"\n", "it builds"
        if notices:
            raise StageCrashedError("The folder is gone.")
        folder.mkdir()
        (folder / "b.bin").write_bytes(b"others")
        return ()

    with contextlib.ExitStack() as running:
        built = Watched(tmp_path).build(KEY, stalled)
    assert [successor.returncode for successor in successors] == [0]
    assert (len(turns), built.bytes) == (2, 5)
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [built.digest]
    assert not list((tmp_path / "building").iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "add", "remove"])
def test_a_damaged_artifact_is_built_again(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path)
    built = store.build(KEY, make)
    weights = Path(built.path, "weights", "a.bin")
    if damage == "flip":
        weights.write_bytes(b"12045")
    elif damage == "cut":
        weights.write_bytes(b"123")
    elif damage == "add":
        (weights.parent / "b.bin").touch()
    else:
        weights.unlink()
    assert store.find(KEY) is None
    again = store.build(KEY, make)
    assert (again, weights.read_bytes()) == (built, b"12345")
    assert store.find(KEY) == built
    assert not list((tmp_path / "building").iterdir())


def test_a_file_that_was_only_touched_is_still_good(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built = store.build(KEY, make)
    os.utime(Path(built.path, "weights", "a.bin"), (1, 1))
    assert store.find(KEY) == built


def test_a_damaged_record_of_a_step_is_built_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built = store.build(KEY, make)
    (tmp_path / "steps" / f"{KEY}.json").write_text('{"digest"')
    assert store.find(KEY) is None
    assert store.build(KEY, make) == built


def test_a_store_that_was_moved_is_still_good(tmp_path: Path) -> None:
    built = ArtifactStore(tmp_path / "here").build(KEY, make)
    (tmp_path / "here").rename(tmp_path / "there")
    found = ArtifactStore(tmp_path / "there").find(KEY)
    assert found is not None
    assert found.path == str(tmp_path / "there" / "artifacts" / built.digest)


def test_a_step_that_raises_leaves_nothing_and_keeps_its_error(tmp_path: Path) -> None:
    def broken(folder: Path) -> tuple[str, ...]:
        make(folder)
        raise KeyError("weights")

    with pytest.raises(KeyError):
        ArtifactStore(tmp_path).build(KEY, broken)
    assert files(tmp_path) == []


def test_what_a_killed_step_goes_on_from_is_kept_until_it_is_done(tmp_path: Path) -> None:
    store, seen = ArtifactStore(tmp_path), []

    def resumable(folder: Path) -> tuple[str, ...]:
        checkpoint = store.checkpoints(KEY) / "state"
        seen.append(checkpoint.exists())
        write_atomically(checkpoint, "half")
        if len(seen) == 1:
            raise StageTimeoutError("killed")
        return make(folder)

    with pytest.raises(StageTimeoutError):
        store.build(KEY, resumable)
    store.discard_unfinished()
    store.build(KEY, resumable)
    assert seen == [False, True]
    assert not store.checkpoints(KEY).exists()


def test_a_disk_that_fills_up_while_building_leaves_nothing(tmp_path: Path) -> None:
    def filling(folder: Path) -> tuple[str, ...]:
        make(folder)
        with Path("/dev/full").open("wb") as stream:
            stream.write(b"x")
        return ()

    with pytest.raises(StorageError, match=r"No space is left .*--store"):
        ArtifactStore(tmp_path).build(KEY, filling)
    assert files(tmp_path) == []


def test_a_disk_that_fills_up_while_publishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space is left"):
        ArtifactStore(tmp_path).build(KEY, make)
    assert files(tmp_path) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space is left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert files(tmp_path) == ["state.json"]
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_a_file_where_a_folder_belongs_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--store"):
        write_atomically(tmp_path / "file" / "state.json", "new")


def test_a_store_that_is_not_a_folder_is_refused() -> None:
    with pytest.raises(StorageError, match="neither a folder nor"):
        open_root("ftp://host/store")


def test_the_store_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_root(f"file://{tmp_path}/here") == tmp_path / "here"
    assert default_root() == Path(os.environ["GENOPT_STORE"])
    monkeypatch.delenv("GENOPT_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "genopt"


def test_a_folder_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = folder_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first[0], second[0], folder_digest(tmp_path)[0]}) == 3
    assert first[1] == 1


def test_the_digest_of_a_folder_without_links_is_the_one_that_it_had(tmp_path: Path) -> None:
    for name in ("weights/a.bin", "weights.json", "weights/a/b", "B"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    expected = hashlib.sha256()
    for name in ("B", "weights/a/b", "weights/a.bin", "weights.json"):  # sorted by parts
        expected.update(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\n".encode())
    assert folder_digest(tmp_path) == (expected.hexdigest(), 37)


def test_what_a_link_leads_to_belongs_to_the_folder(tmp_path: Path) -> None:
    weights, folder = tmp_path / "finetune" / "unet" / "model.safetensors", tmp_path / "pipeline"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1234")
    folder.mkdir()
    (folder / "unet").symlink_to("../finetune/unet")
    (folder / "unet_2").symlink_to("unet")
    assert [path.relative_to(folder).as_posix() for path in visible_files(folder)] == ["unet/model.safetensors", "unet_2/model.safetensors"]
    before, seen = folder_digest(folder), stamps(folder)
    model = Artifact(digest=before[0], path=str(folder), bytes=before[1])
    assert is_whole(model)
    weights.write_bytes(b"12345")
    assert folder_digest(folder) != before
    assert stamps(folder) != seen
    weights.unlink()
    assert not is_whole(model)


def test_a_link_back_is_followed_once(tmp_path: Path) -> None:
    folder = tmp_path / "finetune" / "pipeline"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "here").symlink_to(".")
    (folder / "unet").symlink_to("..")
    (folder.parent / "model.safetensors").write_text("")
    assert [path.relative_to(folder).as_posix() for path in visible_files(folder)] == ["model_index.json", "unet/model.safetensors"]


def test_hidden_files_change_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    built = store.build(KEY, make)
    folder = Path(built.path)
    before = folder_digest(folder), stamps(folder)
    for name in (".git/index", ".cache/huggingface/download/model.safetensors.metadata", "weights/.gitattributes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert (folder_digest(folder), stamps(folder)) == before
    assert store.find(KEY) == built
    assert [one.problem for one in Inventory(str(tmp_path / "store")).verify()] == [""]
    (folder / "weights" / "a.bin").unlink()
    assert not is_whole(built), "hidden bytes do not stand in for lost ones"


TEXT = st.text(max_size=6)


@given(parent=TEXT, technique=TEXT, version=st.integers(0, 9), value=st.integers() | TEXT)
def test_a_step_key_depends_on_all_of_its_parts(parent: str, technique: str, version: int, value: int | str) -> None:
    key = step_key(parent, technique, version, {"p": value, "q": 1}, {"seed": 0})
    assert key == step_key(parent, technique, version, {"q": 1, "p": value}, {"seed": 0})
    others = {
        step_key(parent + "x", technique, version, {"p": value, "q": 1}, {"seed": 0}),
        step_key(parent, technique + "x", version, {"p": value, "q": 1}, {"seed": 0}),
        step_key(parent, technique, version + 1, {"p": value, "q": 1}, {"seed": 0}),
        step_key(parent, technique, version, {"p": value}, {"seed": 0}),
        step_key(parent, technique, version, {"p": value, "q": 1}, {"seed": 1}),
    }
    assert len(others) == 5
    assert key not in others


def test_a_bucket_is_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPT_STORE", "s3://bucket/store")
    with pytest.raises(SpecError, match="--store s3://bucket/store"):
        default_root()
