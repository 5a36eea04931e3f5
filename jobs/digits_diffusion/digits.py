"""Handwritten digits as training data: scikit-learn's 8×8 images, drawn smoothly as dark ink on white paper."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 32
"""Pixels of a side of an image."""
INK_SIDE = 24
"""Pixels of a side of the part that a digit fills."""
HELD_OUT = 0.2
THIN, PLAIN, BOLD = 0, 1, 2


class Digits(NamedTuple):
    """Images with one channel, 1 for paper and -1 for ink, their digits, and how much ink each has among its kind."""

    images: Tensor
    labels: Tensor
    styles: Tensor

    def to(self, device: torch.device) -> Digits:
        """The same on another device."""
        return Digits(*(tensor.to(device) for tensor in self))


def read_arrays(data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) of 0 to 16 and labels, from a file that `export` wrote, or from scikit-learn."""
    if data is not None:
        with np.load(data, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def export(path: Path) -> None:
    """Writes the digits for machines without scikit-learn."""
    images, labels = read_arrays(None)
    np.savez_compressed(path, images=images.astype(np.uint8), labels=labels.astype(np.uint8))


def load(data: Path | None, seed: int) -> tuple[Digits, Digits]:
    """The digits to train on, and those held out."""
    images, labels = read_arrays(data)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = round(HELD_OUT * len(order))
    drawn = draw(torch.from_numpy(images.astype(np.float32) / 16))
    targets = torch.from_numpy(labels.astype(np.int64))
    styles = _styles(images.sum((1, 2)), labels)
    parts = (Digits(drawn[index], targets[index], styles[index]) for index in map(torch.from_numpy, (order[held_out:], order[:held_out])))
    train, test = parts
    return train, test


def draw(ink: Tensor) -> Tensor:
    """Smooth images (n, 1, SIDE, SIDE) of 8×8 shares of ink."""
    large = functional.interpolate(ink[:, None], size=(INK_SIDE, INK_SIDE), mode="bicubic", align_corners=False)
    sharp = torch.sigmoid(10 * (large - 0.45))
    margin = (SIDE - INK_SIDE) // 2
    return 1 - 2 * functional.pad(sharp, (margin,) * 4)


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images turned, scaled, moved and blurred a little, each in its own way."""
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    angle, scale = uniform(-0.15, 0.15), uniform(0.9, 1.12)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, uniform(-0.08, 0.08), sin, cos, uniform(-0.08, 0.08)], 1)
    grid = functional.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is paper
    blurred = functional.avg_pool2d(functional.pad(moved, (1,) * 4, value=1.0), 3, stride=1)
    return torch.lerp(moved, blurred, uniform(0, 0.6).view(-1, 1, 1, 1))


def _styles(ink: np.ndarray, labels: np.ndarray) -> Tensor:
    """Thin for the third of each digit's images with least ink, bold for the third with most."""
    styles = np.full(len(labels), PLAIN)
    for label in np.unique(labels):
        low, high = np.quantile(ink[labels == label], [1 / 3, 2 / 3])
        styles[(labels == label) & (ink < low)] = THIN
        styles[(labels == label) & (ink > high)] = BOLD
    return torch.from_numpy(styles)
