"""Object stores and shared folders as the store sees them: whole files by name, through pyarrow's filesystems."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from genopt.errors import StorageError
from genopt.plan import Record

CHUNK = 4 * 2**20
SCHEMES = ("s3", "gs", "file")


class RemoteFile(Record):
    """A file of a store.

    Attributes:
        name: Below the store's root.
        bytes: Its size.
        changed: When it was written, in Unix seconds.
    """

    name: str
    bytes: int
    changed: float


class Remote:
    """A folder on any pyarrow filesystem. Whole files appear at once on object stores; readers check digests all the same.

    Args:
        uri: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `file:///FOLDER`; options such as `?endpoint_override=HOST:PORT` and
            `&scheme=http` are pyarrow's. Credentials come from the environment.

    Raises:
        StorageError: It cannot be used, with the remedy.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if "@" in parts.netloc or "secret" in parts.query.lower():
            raise StorageError("A store's URI ends up in files of the run, so it must hold no credentials; set AWS_ACCESS_KEY_ID and its like.")
        if parts.scheme not in SCHEMES:
            raise StorageError(f"The store {uri} is neither a folder nor an s3://, gs:// or file:// URI; give one of these.")
        self.uri = uri
        try:
            self._files, base = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._error(error) from None
        self._base = PurePosixPath(base)

    def _error(self, error: Exception) -> StorageError:
        cause = str(error).strip().splitlines()[0].rstrip(".")[:200]
        return StorageError(f"The store {self.uri} cannot be used ({cause}); check the address, the credentials and the network, or --store.")

    def _path(self, name: str) -> str:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise StorageError(f"The store {self.uri} names a file {name!r} outside of itself; run `genopt store verify`.")
        return str(self._base / name)

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            StorageError: The store does not answer.
        """
        try:
            with self._files.open_input_stream(self._path(name)) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError) as error:
            raise self._error(error) from None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file.

        Raises:
            StorageError: The store cannot be written.
        """
        try:
            self._make_room(name)
            with self._files.open_output_stream(self._path(name)) as stream:
                stream.write(content)
        except (pa.ArrowException, OSError) as error:
            raise self._error(error) from None

    def upload(self, source: Path, name: str) -> None:
        """Writes a file of this machine.

        Raises:
            StorageError: The store cannot be written.
        """
        try:
            self._make_room(name)
            with source.open("rb") as file, self._files.open_output_stream(self._path(name)) as stream:
                shutil.copyfileobj(file, stream, CHUNK)
        except (pa.ArrowException, OSError) as error:
            raise self._error(error) from None

    def download(self, name: str, destination: Path) -> None:
        """Reads a file into one of this machine.

        Raises:
            StorageError: The store does not answer, or has no such file.
            OSError: This machine's disk cannot be written.
        """
        self._path(name)  # before anything is written here under a name that leads elsewhere
        destination.parent.mkdir(parents=True, exist_ok=True)
        with destination.open("wb") as file:
            for piece in self._pieces(name):
                file.write(piece)

    def sha256(self, name: str) -> str:
        """The digest of a file, read piece by piece.

        Raises:
            StorageError: The store does not answer, or has no such file.
        """
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            stream = self._files.open_input_stream(self._path(name))
        except (pa.ArrowException, OSError) as error:
            raise self._error(error) from None
        with stream:
            while True:
                try:
                    piece: bytes = stream.read(CHUNK)
                except (pa.ArrowException, OSError) as error:
                    raise self._error(error) from None
                if not piece:
                    return
                yield piece

    def files(self, folder: str = "") -> list[RemoteFile]:
        """All files below a folder, by name; none where there is no such folder.

        Raises:
            StorageError: The store does not answer.
        """
        selector = fs.FileSelector(str(self._base / folder), allow_not_found=True, recursive=True)
        try:
            found = self._files.get_file_info(selector)
        except (pa.ArrowException, OSError) as error:
            raise self._error(error) from None
        listed = [
            RemoteFile(name=str(PurePosixPath(one.path).relative_to(self._base)), bytes=one.size or 0, changed=(one.mtime_ns or 0) / 1e9)
            for one in found if one.type == fs.FileType.File
        ]  # fmt: skip
        return sorted(listed, key=lambda one: one.name)

    def remove(self, *names: str) -> None:
        """Removes files; those that are gone already are no error.

        Raises:
            StorageError: The store cannot be written.
        """
        for name in names:
            try:
                self._files.delete_file(self._path(name))
            except FileNotFoundError:
                continue
            except (pa.ArrowException, OSError) as error:
                raise self._error(error) from None

    def remove_emptied(self, folder: str) -> None:
        """Removes a folder that holds no files any more; object stores have no folders."""
        if not isinstance(self._files, fs.LocalFileSystem):
            return
        top = Path(self._path(folder))
        for path in sorted((top, *(one for one in top.rglob("*") if one.is_dir())), reverse=True):  # what is within comes first
            with contextlib.suppress(OSError):  # gone already, or another process has put a file there
                path.rmdir()

    def _make_room(self, name: str) -> None:
        """Folders exist on disks alone."""
        if isinstance(self._files, fs.LocalFileSystem):
            self._files.create_dir(str(PurePosixPath(self._path(name)).parent), recursive=True)
