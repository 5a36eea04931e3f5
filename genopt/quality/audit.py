"""Audits an artifact's weight files by their sizes and headers, without loading them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from genopt.models.headers import weight_files
from genopt.plan import Record

OTHER_ENDINGS = (".onnx", ".onnx.data", ".onnx_data", ".gguf", ".ovweights")
HEADER_LIMIT = 100_000_000
"""Largest header that the safetensors library accepts, in bytes."""


class Audit(Record):
    """What the files say.

    Attributes:
        bytes: Size of all weight files.
        effective_bits: Bits of weight files per parameter of the original; 0 where that number is unknown.
        problems: Phrases about what is wrong; empty for a sound artifact.
    """

    bytes: int
    effective_bits: float
    problems: tuple[str, ...]


def audit(folder: Path, parameters: int) -> Audit:
    """Adds up an artifact's weight files and checks that each safetensors file is whole.

    Args:
        folder: The artifact.
        parameters: Parameter count of the original model, 0 if unknown.
    """
    files = _weight_files(folder)
    problems = [f"{path.name} is missing though the index names it" for path in files if not path.is_file()]
    files = [path for path in files if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    problems += [f"{path.name} {problem}" for path in files if path.suffix == ".safetensors" and (problem := _safetensors_problem(path))]
    if not files and not problems:
        problems.append("it holds no weight file")
    return Audit(bytes=size, effective_bits=8 * size / parameters if parameters > 0 else 0.0, problems=tuple(problems))


def _weight_files(folder: Path) -> list[Path]:
    """Weight files beside the model's configuration, else those of its parts.

    Model repositories carry copies of the same weights in subfolders; they must not count twice. Pipelines
    have one subfolder per part, and what lies at the top is such a copy.
    """
    top = _of_part(folder)
    if top and not (folder / "model_index.json").is_file():
        return top
    return [file for part in sorted(folder.glob("**/*")) if part.is_dir() for file in _of_part(part)] or top


def _of_part(folder: Path) -> list[Path]:
    """What is loaded from a folder: safetensors, or where there are none whatever other engines read."""
    return weight_files(folder) or sorted(path for path in folder.iterdir() if path.name.endswith(OTHER_ENDINGS) and path.is_file())


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file: 8 bytes of header length, a JSON header, then exactly the data it names."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
        if length is None or length > min(size - 8, HEADER_LIMIT):
            return "is cut off within its header"
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        claimed = max((int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "has a header that cannot be read"
    held = size - 8 - length
    return f"holds {held} bytes of weights where its header claims {claimed}" if held != claimed else None
