"""What a training has come to: its best weights so far, and a checkpoint on disk from which it goes on when its process was killed."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from genopt.plan import Record
from genopt.store.files import sync_folder
from genopt.techniques.base import Progress

FILE = "training.safetensors"
EVERY_S = 60.0
"""Least time between two checkpoints."""
SHARE = 0.05
"""Most of the time that writing them may take."""
BYTES_S = 500e6
"""Speed at which the first is expected to be written, as most disks do; later ones are expected to take what the last one took."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


class BestWeights:
    """A model's best weights so far.

    Attributes:
        quality: Theirs; the larger the better.
        misses: How often the model was no better than they are, in a row.
        weights: They themselves, by name.
    """

    def __init__(self, model: Module, measure: Callable[[], float]) -> None:
        self._model, self._measure = model, measure
        self.quality, self.misses = float("-inf"), 0
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def measure(self) -> float:
        """The model's quality now; its weights are kept if it is the best."""
        found = self._measure()
        if found > self.quality:
            self.quality, self.misses = found, 0
            for name, value in self._model.named_parameters():
                self.weights[name].copy_(value)
        else:
            self.misses += 1
        return found

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the model its best weights."""
        for name, value in self._model.named_parameters():
            value.copy_(self.weights[name])


class Standing(Record):
    """How far a training has come.

    Attributes:
        before: Quality before it.
        steps: Updates that were made.
        seconds: Time that they took.
        checks: How often quality was measured since.
        quality: Of the best weights.
        misses: As in `BestWeights`.
    """

    before: float
    steps: int = 0
    seconds: float = 0.0
    checks: int = 0
    quality: float = 0.0
    misses: int = 0


class Checkpoint:
    """A training's state in a file: weights, the best ones, AdamW's moments and how far it is.

    It is read before any is written; what is read goes into the objects that are written later.

    Args:
        folder: Made when something is written; None keeps nothing.
        limit_s: Seconds that training may take; writing takes a twentieth of them at most, and none begins that would end later.
        spare_s: Seconds of writing that are no time of training. Where the stage's deadline leaves none, all of them are: training ends sooner.
        every_s: Least seconds between two; twenty times as long as the last one took, if that is more.
    """

    def __init__(self, folder: Path | None, limit_s: float, spare_s: float = 0.0, every_s: float = EVERY_S) -> None:
        self._folder, self._limit_s, self._spare_s, self._every_s = folder, limit_s, spare_s, every_s
        self._due = time.monotonic() + every_s
        self._spent_s = 0.0
        self._measured_s: float | None = None
        self._trained: tuple[Module, Optimizer, BestWeights] | None = None

    @property
    def uncounted_s(self) -> float:
        """Seconds of writing so far that are no time of training."""
        return min(self._spent_s, self._spare_s)

    @torch.no_grad()
    def read(self, model: Module, optimizer: Optimizer, best: BestWeights) -> Standing | None:
        """Brings a training to where it was interrupted; None, and nothing changes, where there is none that fits it."""
        self._trained = (model, optimizer, best)
        if self._folder is None or not (self._folder / FILE).is_file():
            return None
        names = [name for name, _ in model.named_parameters()]
        wanted = {f"{kind}.{name}": value.shape for kind in ("now", "best", *MOMENTS) for name, value in model.named_parameters()}
        try:
            with safe_open(self._folder / FILE, framework="pt") as file:
                standing = Standing.model_validate_json((file.metadata() or {}).get("standing", ""))
                there = set(file.keys())  # all of them: a smaller model's are among a larger one's
                found = {key: file.get_tensor(key) for key in there}
        except (OSError, SafetensorError, ValidationError):
            return None
        if wanted != {key: value.shape for key, value in found.items()}:
            return None
        for name, value in model.named_parameters():
            value.copy_(found[f"now.{name}"])
            best.weights[name].copy_(found[f"best.{name}"])
        best.quality, best.misses = standing.quality, standing.misses
        taken = torch.tensor(float(standing.steps))
        state = {place: {"step": taken.clone(), **{kind: found[f"{kind}.{name}"] for kind in MOMENTS}} for place, name in enumerate(names)}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return standing

    def write_if_due(self, standing: Standing, progress: Progress) -> None:
        """Writes it if enough time has passed since the last one and is left for this one; a disk that cannot take it is no reason to stop.

        Args:
            standing: How far the training is; what the best weights are worth is added.
            progress: Told if it could not be written.
        """
        if self._folder is None or self._trained is None or time.monotonic() < self._due:
            return
        began = time.monotonic()
        model, optimizer, best = self._trained
        expected_s = _first_s(model) if self._measured_s is None else self._measured_s
        if self._spent_s + expected_s > SHARE * self._limit_s or standing.seconds + expected_s > self._limit_s:
            return
        state = optimizer.state
        tensors: dict[str, Tensor] = {}
        for name, value in model.named_parameters():
            moments = {kind: state[value][kind] if value in state else torch.zeros_like(value) for kind in MOMENTS}  # what has no gradient has none
            kept = {"now": value.detach(), "best": best.weights[name], **moments}
            tensors |= {f"{kind}.{name}": one.contiguous() for kind, one in kept.items()}
        try:
            _write(self._folder, tensors, standing.model_copy(update={"quality": best.quality, "misses": best.misses}))
            self._measured_s = time.monotonic() - began
        except (OSError, SafetensorError) as error:
            progress(f"no checkpoint could be written ({error}); training goes on without")
        ended = time.monotonic()
        self._spent_s += ended - began
        self._due = ended + max(self._every_s, (ended - began) / SHARE)


def _first_s(model: Module) -> float:
    """Seconds that the first checkpoint is expected to take: the weights, the best ones and the moments."""
    return (2 + len(MOMENTS)) * sum(value.nbytes for value in model.parameters()) / BYTES_S


def _write(folder: Path, tensors: dict[str, Tensor], standing: Standing) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE}.{uuid.uuid4().hex}"
    try:
        save_file(tensors, partial, {"standing": standing.model_dump_json()})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.rename(folder / FILE)
        sync_folder(folder)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
