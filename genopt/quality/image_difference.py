"""How much images differ from others: PSNR, SSIM, and a perceptual distance. Difference, not damage.

A step fewer or another seed moves every pixel and may look as good, so none of these decides about a candidate; what a
scorer says of both images does (`genopt.quality.image`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genopt.errors import StageError

PSNR_LIMIT = 100.0
"""What equal images get, in dB."""
SIGMA, RADIUS = 1.5, 5
"""Gaussian window of SSIM: 11 pixels wide, as in its paper."""
ORIENTATIONS, SCALES = 4, 4
"""Filters of the perceptual distance per scale, and scales an octave apart."""
LUMA = np.array([0.299, 0.587, 0.114])

Image = NDArray[np.uint8]
"""Height, width, three channels."""
Plane = NDArray[np.float64]


def require_alike(one: Image, other: Image) -> None:
    """Makes sure that two images can be compared.

    Raises:
        StageError: One is no image of three channels in 8 bits, or they differ in size.
    """
    for image in (one, other):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
            raise StageError(f"An image of shape {image.shape} and type {image.dtype} cannot be compared; give 8-bit RGB.")
    if one.shape != other.shape:
        raise StageError(f"Images of {one.shape[1]}x{one.shape[0]} and {other.shape[1]}x{other.shape[0]} cannot be compared; generate one size.")


def psnr(one: Image, other: Image) -> float:
    """Peak signal-to-noise ratio in dB, at most `PSNR_LIMIT`."""
    require_alike(one, other)
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return min(PSNR_LIMIT, 10 * math.log10(255**2 / error)) if error > 0 else PSNR_LIMIT


def ssim(one: Image, other: Image) -> float:
    """Structural similarity of the luminance, 1 for equal images (Wang et al., IEEE Transactions on Image Processing 13, 2004)."""
    require_alike(one, other)
    a, b = (image.astype(np.float64) @ LUMA for image in (one, other))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return float(found.mean())


def perceptual_distance(one: Image, other: Image) -> float:
    """Distance of normalised filter responses, 0 for equal images; larger is more different.

    Built as LPIPS is (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018): responses
    are scaled to unit length over the channels at each place, subtracted, squared and averaged over places and scales.
    The filters are oriented edges and colour contrasts instead of a trained network, whose weights no package carries;
    the numbers are therefore not LPIPS, and only compare with each other.
    """
    require_alike(one, other)
    levels = zip(_pyramid(one), _pyramid(other), strict=True)
    return float(np.mean([((_unit(_responses(a)) - _unit(_responses(b))) ** 2).sum(axis=0).mean() for a, b in levels]))


def differences(one: Image, other: Image) -> dict[str, float]:
    """All of them by name."""
    return {"psnr_db": psnr(one, other), "ssim": ssim(one, other), "perceptual_distance": perceptual_distance(one, other)}


def mean_differences(pairs: Sequence[tuple[Image, Image]]) -> dict[str, float]:
    """Means over pairs of images; nothing for no pairs."""
    found = [differences(one, other) for one, other in pairs]
    return {name: float(np.mean([item[name] for item in found])) for name in (found[0] if found else {})}


def _blurred(plane: Plane) -> Plane:
    """Gaussian blur with mirrored borders."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(plane, [(RADIUS, RADIUS) if axis == side else (0, 0) for side in (0, 1)], mode="symmetric")
        length = plane.shape[axis]
        parts = [weight * np.take(padded, range(shift, shift + length), axis=axis) for shift, weight in enumerate(weights.tolist())]
        plane = np.stack(parts).sum(axis=0)
    return plane


def _pyramid(image: Image) -> list[Plane]:
    """The image at falling sizes, as luminance and two colour contrasts, each between -1 and 1."""
    rgb = image.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1
    opponent = np.stack([np.tensordot(LUMA, rgb, 1), (rgb[0] - rgb[1]) / 2, (rgb[0] + rgb[1]) / 4 - rgb[2] / 2])
    levels = [opponent]
    while len(levels) < SCALES and min(levels[-1].shape[1:]) >= 4:
        smooth = np.stack([_blurred(plane) for plane in levels[-1]])
        levels.append(smooth[:, ::2, ::2])
    return levels


def _responses(planes: Plane) -> Plane:
    """Steered derivatives and the centre of each plane, a channel each."""
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down, right = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2, (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    steered = [math.cos(angle) * right + math.sin(angle) * down for angle in angles]
    return np.concatenate([*steered, 0.25 * planes])


def _unit(responses: Plane) -> Plane:
    found: Plane = responses / np.sqrt((responses**2).sum(axis=0) + 1e-4)
    return found
