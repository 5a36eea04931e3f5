"""Turns a `.gguf` file into a model folder, once: this module as a program, `genopt.models.gguf FILE FOLDER`, does the heavy part.

The conversion dequantizes with transformers and stores bfloat16 safetensors. It runs in a process of
its own, so that whoever resolves a model never loads torch. The file itself is kept beside the weights, since it is a candidate too.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genopt import bootstrap
from genopt.errors import ModelError, StorageError
from genopt.models.inspect import context_of
from genopt.store.files import exclusive, file_sha256, storage_error, sync_folder

VERSION = 2
"""Part of the cache's names; raise it when the conversion writes other bytes."""
TIME_LIMIT_S = 3600.0
MAGIC = b"GGUF"
READABLE = (2, 3)
"""Versions of the format that its own readers know (the gguf package, `READER_SUPPORTED_VERSIONS`)."""
GIVEN = Path("given", "model.gguf")
"""The file as it was given, in the model's folder."""
GIVEN_TRAIT = "given_gguf"


def converted_folder(cache: Path, digest: str) -> Path:
    """Where the conversion of the file with this sha256 is, or will be."""
    return cache / "models" / f"gguf-{digest}-v{VERSION}"


def original_traits(folder: Path) -> tuple[str, ...]:
    """Traits of an original model's folder."""
    if (folder / "model_index.json").is_file():
        return ("diffusers",)
    return (GIVEN_TRAIT, "hf") if (folder / GIVEN).is_file() else ("hf",)


def import_gguf(source: Path, *, cache: Path, progress: Callable[[str], None]) -> Path:
    """The model folder of a `.gguf` file, converted unless an earlier call did; concurrent callers convert once.

    Raises:
        ModelError: The file is missing, is not GGUF, or transformers cannot read it.
        StorageError: The cache cannot be written.
    """
    check_magic(source)
    progress(f"checking {source.name}")
    folder = converted_folder(cache, file_sha256(source))
    with exclusive(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _convert_and_publish(source, folder, progress)
    return folder


def check_magic(source: Path) -> None:
    """Refuses what is not a GGUF file.

    Raises:
        ModelError: The file is missing, unreadable, starts with other bytes or is of a version that nobody here reads.
    """
    if not source.is_file():
        raise ModelError(f"There is no file {source}; check the path.")
    try:
        with source.open("rb") as stream:
            start, version = stream.read(len(MAGIC)), int.from_bytes(stream.read(4), "little")
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror}); check its permissions.") from None
    if start != MAGIC:
        raise ModelError(f"{source} is not a GGUF file (it does not start with GGUF); fetch it again.")
    if version not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ModelError(f"{source} is a GGUF file of version {version}, and versions {known} can be read; write it again with a current llama.cpp.")


def _convert_and_publish(source: Path, folder: Path, progress: Callable[[str], None]) -> None:
    partial = folder.with_suffix(".partial")
    progress(f"converting {source.name} to bfloat16 safetensors (once)")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _run(source, partial)
        (partial / GIVEN).parent.mkdir()
        shutil.copyfile(source, partial / GIVEN)
        for path in (item for item in partial.rglob("*") if item.is_file()):
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder((partial / GIVEN).parent)
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(source: Path, destination: Path) -> None:
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*bootstrap.command(sys.executable, "genopt.models.gguf"), str(source.absolute()), str(destination.absolute())]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"Converting {source} took longer than {TIME_LIMIT_S:.0f} s; give its safetensors folder instead.") from None
    if done.returncode == 0:
        return
    if "No space left on device" in done.stderr:
        raise StorageError(f"No space is left for {destination.parent}; free some or point --store (GENOPT_STORE) to a larger disk.")
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
    raise ModelError(f"{source} cannot be converted ({last.rstrip('.')}); give a GGUF file that transformers can read, or a safetensors folder.")


def convert(source: Path, destination: Path) -> None:
    """Writes a GGUF file's model as bfloat16 safetensors with its tokenizer, chat template and generation config.

    Args:
        source: The `.gguf` file.
        destination: An existing folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    dequantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    config = dequantized.config
    vars(config).pop("quantization_config", None)
    # A model that was loaded from GGUF refuses save_pretrained; a plain one with the same weights does not.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(dequantized.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config.bos_token_id = tokenizer.bos_token_id
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    plain.generation_config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    plain.save_pretrained(destination)
    tokenizer.model_max_length = context_of(config.to_dict())
    _restore_digit_splitting(source, tokenizer)
    tokenizer.save_pretrained(destination)


def _restore_digit_splitting(source: Path, tokenizer: object) -> None:
    """Splits numbers into digits where the file says so: transformers drops that part of a GGUF tokenizer.

    The file names its pre-tokenizer in `tokenizer.ggml.pre`; `smollm` is GPT-2's after splitting digits
    (llama.cpp, src/llama-vocab.cpp).
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as Steps
    from transformers import PreTrainedTokenizerFast

    field = GGUFReader(source).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm" and isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer.backend_tokenizer.pre_tokenizer = Steps([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _look_once() -> None:
    """Keeps for the rest of this process what is looked up in the file, as to read its vocabulary takes seconds.

    transformers reads the file for each thing that it wants of it, and asks for the names of all tensors for each of the model's modules.
    """
    import gguf

    library: dict[str, Any] = vars(gguf)
    opened = functools.cache(library["GGUFReader"])
    library["GGUFReader"] = lambda path: opened(str(path))
    library["get_tensor_name_map"] = functools.cache(library["get_tensor_name_map"])


if __name__ == "__main__":
    _look_once()
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
