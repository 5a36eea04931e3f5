"""A shared store and the caches in front of it: what arrives is checked, what is damaged is built again, and what is in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genopt.errors import SpecError, StageTimeoutError, StorageError
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore, folder_digest
from genopt.store.claim import Claim
from genopt.store.inventory import Inventory
from genopt.store.remote import Remote
from genopt.store.shared import LIMIT, SharedStore, is_shared, limit_bytes, open_root, open_store

KEY, OTHER = "a" * 64, "b" * 64


class Machines:
    """Caches of several machines in front of one shared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "shared"

    def store(self, machine: str = "one", limit: int | None = None) -> SharedStore:
        return SharedStore(Remote(self.shared.as_uri()), self.folder / machine, limit)

    def build(self, key: str = KEY, content: bytes = b"12345", *, machine: str = "one", limit: int | None = None) -> Artifact:
        def make(folder: Path) -> tuple[str, ...]:
            (folder / "weights").mkdir()
            (folder / "weights" / "a.bin").write_bytes(content)
            (folder / "config.json").write_text("{}")
            return ("hf",)

        return self.store(machine, limit).build(key, make)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def never(_: Path) -> tuple[str, ...]:
    raise AssertionError("it was built already")


def content(artifact: Artifact) -> bytes:
    return Path(artifact.path, "weights", "a.bin").read_bytes()


def test_what_one_machine_built_another_finds(machines: Machines) -> None:
    built = machines.build()
    found = machines.store("two").build(KEY, never)
    assert (found.digest, found.traits, content(found)) == (built.digest, ("hf",), b"12345")
    assert found.path == str(machines.folder / "two" / "artifacts" / built.digest)
    assert not list((machines.folder / "two" / "building").iterdir())


def test_what_is_here_is_not_fetched(machines: Machines) -> None:
    built = machines.build()
    (machines.shared / "artifacts" / built.digest / "config.json").unlink()
    found = machines.store().find(KEY)
    assert found is not None
    assert content(found) == b"12345"
    assert machines.store("two").find(KEY) is None


def test_what_was_removed_from_the_shared_store_but_is_still_here_is_uploaded_again(machines: Machines) -> None:
    built = machines.build()
    Inventory(machines.shared.as_uri()).remove({built.digest})
    assert machines.store("two").find(KEY) is None
    found = machines.store().build(KEY, never)
    with machines.store("two").local(found) as here:
        assert content(here) == b"12345"
    assert content(machines.store("three").build(KEY, never)) == b"12345"


@pytest.mark.parametrize("damage", [b"12045", b"123", None])
def test_what_is_damaged_in_the_shared_store_is_built_again(machines: Machines, damage: bytes | None) -> None:
    built = machines.build()
    there = machines.shared / "artifacts" / built.digest / "weights" / "a.bin"
    there.write_bytes(damage) if damage is not None else there.unlink()
    assert machines.store("two").find(KEY) is None
    machines.build(machine="two")
    assert there.read_bytes() == b"12345"
    assert content(machines.store("three").build(KEY, never)) == b"12345"


def test_what_is_damaged_in_the_cache_is_fetched_again(machines: Machines) -> None:
    built = machines.build()
    Path(built.path, "weights", "a.bin").write_bytes(b"12045")
    again = machines.store().build(KEY, never)
    assert (again.path, content(again)) == (built.path, b"12345")


def test_an_artifact_of_another_machine_is_used_from_this_one(machines: Machines) -> None:
    built = machines.build()
    with machines.store("two").local(built) as here:
        assert here.path.startswith(str(machines.folder / "two"))
        assert content(here) == b"12345"
    missing = built.model_copy(update={"digest": "0" * 64, "path": f"/elsewhere/artifacts/{'0' * 64}"})
    with pytest.raises(StorageError, match="genopt store verify"), machines.store("two").local(missing):
        pass
    model = Artifact(digest="model", path=str(machines.folder), bytes=1)
    with machines.store("two").local(model) as here:
        assert here == model, "the user's own folders are nobody's artifacts"


def test_a_folder_is_shared_by_its_digest(machines: Machines) -> None:
    data = machines.folder / "data"
    data.mkdir()
    (data / "text_set.json").write_text("[]")
    shared = machines.store().share(data)
    assert shared.digest == folder_digest(data)[0]
    with machines.store("two").local(shared) as here:
        assert Path(here.path, "text_set.json").read_text() == "[]"


def test_a_shared_folder_has_what_links_lead_to_and_nothing_hidden(machines: Machines) -> None:
    unet, folder = machines.folder / "finetune" / "unet", machines.folder / "pipeline"
    for path in (unet / "model.safetensors", folder / "model_index.json", folder / ".git" / "index"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (folder / "unet").symlink_to(unet)
    with machines.store("two").local(machines.store().share(folder)) as here:
        assert Path(here.path, "unet", "model.safetensors").read_text() == "model.safetensors"
        assert {path.name for path in Path(here.path).iterdir()} == {"model_index.json", "unet"}


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(machines: Machines) -> None:
    size = 1000
    built = [machines.build(digit * 64, digit.encode() * size, limit=3 * (size + 2)) for digit in "123"]
    for age, artifact in enumerate(built):
        os.utime(machines.folder / "one" / "used" / artifact.digest, (100 - age, 100 - age))
    machines.store().find("1" * 64)  # used just now
    machines.build("4" * 64, b"4" * size, limit=3 * (size + 2))
    left = {path.name for path in (machines.folder / "one" / "artifacts").iterdir()}
    assert built[2].digest not in left
    assert len(left) == 3
    assert content(machines.store(limit=3 * (size + 2)).build("3" * 64, never)) == b"3" * size, "it is still in the shared store"
    assert len(list((machines.folder / "one" / "artifacts").iterdir())) == 3


def test_what_is_in_use_is_not_dropped(machines: Machines) -> None:
    held = machines.build(KEY, b"x" * 1000)
    with machines.store().local(held):
        machines.build(OTHER, b"y" * 1000, limit=1500)
        assert content(held) == b"x" * 1000
    machines.build("c" * 64, b"z" * 1000, limit=1500)
    assert not Path(held.path).exists()


class HeldUp(Remote):
    """Waits before it uploads a file until it may go on."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uploading, self.go = threading.Event(), threading.Event()

    def upload(self, source: Path, name: str) -> None:
        self.uploading.set()
        assert self.go.wait(30)
        super().upload(source, name)


@pytest.mark.parametrize("how", ["built", "found"])
def test_what_is_being_uploaded_is_not_dropped(machines: Machines, how: str) -> None:
    if how == "found":
        Inventory(machines.shared.as_uri()).remove({machines.build(KEY, b"x" * 1000).digest})
    remote = HeldUp(machines.shared.as_uri())
    slow = SharedStore(remote, machines.folder / "one")

    def make(folder: Path) -> tuple[str, ...]:
        (folder / "weights").mkdir()
        (folder / "weights" / "a.bin").write_bytes(b"x" * 1000)
        return ()

    with ThreadPoolExecutor(1) as pool:
        uploaded = pool.submit(slow.build, KEY, make if how == "built" else never)
        assert remote.uploading.wait(30)
        machines.build(OTHER, b"y" * 1000, limit=1500)
        remote.go.set()
    assert content(uploaded.result()) == b"x" * 1000
    assert content(machines.store("two").build(KEY, never)) == b"x" * 1000


class Watched(Remote):
    """Downloads once so many have asked for manifests, and notes what."""

    def __init__(self, uri: str, awaited: int) -> None:
        super().__init__(uri)
        self.awaited, self.all_asked = awaited, threading.Event()
        self.asked: list[str] = []
        self.downloaded: list[str] = []

    def read(self, name: str) -> bytes | None:
        found = super().read(name)
        if name.startswith("manifests/"):
            self.asked.append(name)
            if len(self.asked) >= self.awaited:
                self.all_asked.set()
        return found

    def download(self, name: str, destination: Path) -> None:
        assert self.all_asked.wait(30)
        self.downloaded.append(Path(name).name)
        super().download(name, destination)


@pytest.mark.parametrize("how", ["local", "find"])
def test_what_several_lack_at_once_is_downloaded_once(machines: Machines, how: str) -> None:
    built, remote = machines.build(), Watched(machines.shared.as_uri(), 4)

    def use() -> bytes:
        store = SharedStore(remote, machines.folder / "two")
        if how == "find":
            found = store.find(KEY)
            assert found is not None
            return content(found)
        with store.local(built) as here:
            return content(here)

    with ThreadPoolExecutor(4) as pool:
        assert [one.result() for one in [pool.submit(use) for _ in range(4)]] == [b"12345"] * 4
    assert sorted(remote.downloaded) == ["a.bin", "config.json"]
    assert not list((machines.folder / "two" / "building").iterdir())


DOWNLOADER = """
import sys
from pathlib import Path
from genopt.plan import Artifact
from genopt.store.remote import Remote
from genopt.store.shared import SharedStore
class Slow(Remote):
    def download(self, name, destination):
        print(flush=True)
        input()
with SharedStore(Slow(sys.argv[1]), Path(sys.argv[2])).local(Artifact.model_validate_json(sys.argv[3])):
    pass
"""


def test_who_waits_for_a_download_goes_on_where_its_process_dies(machines: Machines) -> None:
    built, remote = machines.build(), Watched(machines.shared.as_uri(), 1)
    command = [sys.executable, "-c", DOWNLOADER, machines.shared.as_uri(), str(machines.folder / "two"), built.model_dump_json()]

    def use() -> bytes:
        with SharedStore(remote, machines.folder / "two").local(built) as here:
            return content(here)

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as downloader, ThreadPoolExecutor(1) as pool:
        assert downloader.stdout is not None
        assert downloader.stdout.readline() == b"\n"
        used = pool.submit(use)
        assert remote.all_asked.wait(30)
        assert not remote.downloaded, "it waits"
        downloader.kill()
        assert used.result(timeout=30) == b"12345"


def test_without_a_limit_half_of_the_disk_is_enough(machines: Machines) -> None:
    first, second = machines.build(KEY, b"x"), machines.build(OTHER, b"y")
    assert Path(first.path).exists()
    assert Path(second.path).exists()


def test_names_that_lead_outside_are_refused(machines: Machines) -> None:
    built = machines.build()
    (machines.shared / "manifests" / f"{built.digest}.json").write_text('{"../../escaped": 1}')
    assert machines.store("two").find(KEY) is None, "there is no such file in the store"
    with pytest.raises(StorageError, match="outside of itself"):
        Remote(machines.shared.as_uri()).download("artifacts/../../escaped", machines.folder / "here")
    (machines.shared / "steps" / f"{KEY}.json").write_text(built.model_copy(update={"digest": "../../escaped"}).model_dump_json())
    with pytest.raises(StorageError, match="outside of itself"):
        machines.store("three").find(KEY)
    assert not (machines.folder / "here").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:secret@bucket/store", "must hold no credentials"),
        ("s3://bucket/store?secret_key=x", "must hold no credentials"),
        ("ftp://host/store", "neither a folder nor"),
        ("s3:///", "cannot be used"),
    ],
)
def test_a_uri_that_cannot_be_used_is_explained(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Remote(uri)


def test_folders_are_stores_without_a_cache(tmp_path: Path) -> None:
    assert not is_shared(None)
    assert not is_shared(str(tmp_path))
    for location in (str(tmp_path / "a"), (tmp_path / "a").as_uri()):
        assert type(open_store(location)) is ArtifactStore
        assert open_store(location).root == tmp_path / "a" == open_root(location)


def test_the_limit_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_bytes() is None
    monkeypatch.setenv(LIMIT, "1000")
    assert limit_bytes() == 1000
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(SpecError, match="number of bytes"):
        limit_bytes()


def test_an_inventory_lists_verifies_and_removes(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    good, bad = machines.build(KEY, b"x" * 10), machines.build(OTHER, b"y" * 20)
    inventory = Inventory(str(machines.shared))
    listed = {one.digest: one for one in inventory.artifacts()}
    assert (listed[good.digest].bytes, listed[good.digest].steps, listed[good.digest].traits) == (12, 1, ("hf",))
    assert [one.problem for one in inventory.verify()] == ["", ""]
    (machines.shared / "artifacts" / bad.digest / "weights" / "a.bin").write_bytes(b"z")
    assert {one.digest for one in inventory.verify() if one.problem} == {bad.digest}
    (machines.shared / "artifacts" / bad.digest / "config.json").unlink()
    assert {one.problem for one in inventory.verify()} == {"", "config.json is missing"}
    assert inventory.remove({bad.digest}) == 1
    assert {path.name for path in (machines.shared / "artifacts").iterdir()} == {good.digest}, "no empty folder looks like an artifact"
    assert [one.digest for one in inventory.artifacts()] == [good.digest]
    assert machines.store("two").find(OTHER) is None
    assert machines.store("two").find(KEY) is not None


def test_what_may_go_is_old_too_much_or_leads_nowhere(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")

    def kept(key: str, size: int, age: float) -> Artifact:
        def make(folder: Path) -> tuple[str, ...]:
            (folder / "a").write_bytes(os.urandom(size))
            return ()

        made = store.build(key, make)
        os.utime(Path(made.path, "a"), (now - age, now - age))
        return made

    now = time.time()
    new, old, orphan = kept(KEY, 100, 10), kept(OTHER, 200, 5000), kept("c" * 64, 300, 200_000)
    (tmp_path / "store" / "steps" / f"{'c' * 64}.json").unlink()
    inventory = Inventory(str(tmp_path / "store"))

    def going(older_than_s: float | None = None, keep_bytes: int | None = None) -> set[str]:
        return {one.digest for one in inventory.superfluous(older_than_s=older_than_s, keep_bytes=keep_bytes, now=now)}

    assert going() == {orphan.digest}
    assert going(older_than_s=1000) == {old.digest, orphan.digest}
    assert going(keep_bytes=150) == {old.digest, orphan.digest}
    assert going(keep_bytes=0) == {new.digest, old.digest, orphan.digest}
    for folder in ("building", "checkpoints"):
        left = tmp_path / "store" / folder / "dead" / "half"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"123")
    assert inventory.sweep(now) == 0
    assert inventory.sweep(now + 100_000) == 6


def test_machines_build_a_step_once(machines: Machines) -> None:
    calls, building, go = [], threading.Event(), threading.Event()

    def slow(folder: Path) -> tuple[str, ...]:
        calls.append(folder)
        building.set()
        assert go.wait(10)
        (folder / "a").touch()
        return ()

    threads = [threading.Thread(target=machines.store(name).build, args=(KEY, slow)) for name in ("one", "two", "three")]
    threads[0].start()
    assert building.wait(10)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert not list((machines.shared / "claims").iterdir())


def test_a_claim_of_one_who_died_is_taken_over_and_one_who_lives_is_waited_for(tmp_path: Path) -> None:
    remote = Remote(tmp_path.as_uri())
    remote.write("claims/step", b"somebody 7")
    with Claim(remote, "step", settle_s=0.01, stale_s=0.05).held(None):
        held = remote.read("claims/step")
        assert held is not None
        assert not held.startswith(b"somebody")
        with pytest.raises(StageTimeoutError, match="Another machine"), Claim(remote, "step").held(time.monotonic() - 1):
            pass
    assert remote.read("claims/step") is None


def test_a_holder_shows_that_it_lives_and_removes_no_claim_of_another(tmp_path: Path) -> None:
    remote = Remote(tmp_path.as_uri())
    with Claim(remote, "step", settle_s=0.01, beat_s=0.01).held(None):
        first = remote.read("claims/step")
        deadline = time.monotonic() + 5
        while remote.read("claims/step") == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert remote.read("claims/step") != first
    with Claim(remote, "step", settle_s=0.01).held(None):
        remote.write("claims/step", b"somebody 1")
    assert remote.read("claims/step") == b"somebody 1"
