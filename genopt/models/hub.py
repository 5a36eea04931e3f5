"""Fetches models from the Hugging Face hub into the hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from genopt.errors import ModelError
from genopt.models.builtin import BUILT_IN
from genopt.store.files import storage_error

_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_DESCRIPTIONS = ["*.json", "*.jinja", "*.txt", "*.model"]
_COPIES = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.ema.*", "onnx/*", "openvino/*", "*/*.onnx*", "original/*"]
"""Other forms of the same weights, which some repositories carry."""


def is_id(model: str) -> bool:
    """Whether a text has the form of a hub id: `name` or `owner/name`."""
    return _ID.fullmatch(model) is not None and not model.endswith((".git", ".safetensors", ".bin", ".json"))


def fetch(model: str, *, progress: Callable[[str], None], trust_remote_code: bool) -> tuple[Path, str]:
    """Fetches descriptions first, then only the weights that they speak of; what the cache holds is not fetched again.

    Args:
        model: A hub id.
        progress: Told what happens.
        trust_remote_code: Also fetch the model's own Python code.

    Returns:
        The snapshot's folder and its commit.

    Raises:
        ModelError: The hub does not know the model, refuses it or cannot be reached.
        StorageError: The hub's cache cannot be written.
    """
    from httpx import HTTPError
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    progress(f"fetching {model} from the Hugging Face hub")
    descriptions = [*_DESCRIPTIONS, "*.py"] if trust_remote_code else _DESCRIPTIONS
    try:
        folder = Path(snapshot_download(model, allow_patterns=descriptions, ignore_patterns=_COPIES))
        weights, copies = ["model*.safetensors"], [*_COPIES, "*/*"]
        if (folder / "model_index.json").is_file():
            weights, copies = ["*/*.safetensors"], _COPIES
        folder = Path(snapshot_download(model, revision=folder.name, allow_patterns=weights, ignore_patterns=copies))
    except GatedRepoError:
        raise ModelError(f"The hub gives {model} only to those who accepted its terms; accept them on its page and run `hf auth login`.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"There is no folder and no public hub model {model!r}; check the name, run `hf auth login` if it is private, "
            f"or use a built-in name ({', '.join(BUILT_IN)})."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError):
        raise ModelError(
            f"There is no folder {model!r}, and the Hugging Face hub cannot be reached; connect to it (or set HF_ENDPOINT), give a local folder, "
            f"or use a built-in name ({', '.join(BUILT_IN)})."
        ) from None
    except OSError as error:
        raise storage_error(Path(constants.HF_HUB_CACHE), error, "HF_HOME") from None
    return folder, folder.name
