"""What a denoiser can be without so that its configuration still says what is left, and any loader builds just that.

Of a transformer these are blocks. A UNet hands over what each layer on the way down finds to one on the way up, so that a layer of a level (a
residual block with its attention) goes together with one of the same level on the way up; or the whole block in the middle goes. BK-SDM leaves
out the same (Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023), by rule where here it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

from genopt.plan import JsonValue, Record

if TYPE_CHECKING:
    from torch import nn

Config = Mapping[str, Any]

LISTS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
"""Names of a transformer's lists of blocks, and how its configuration says how many there are."""
BY_PLACE = ("dual_attention_layers",)
"""Entries of a configuration that name blocks by their places"""
UNET = "UNet2DConditionModel"
WITH_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
LEVELS = (*WITH_ATTENTION, "DownBlock2D", "UpBlock2D")
"""Levels of UNets whose layers are alike."""
DEFAULTS: Config = {"layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn", "transformer_layers_per_block": 1}
"""What diffusers takes where the configuration of a UNet says nothing, as older ones do."""


class Removal(Record):
    """What can go at once.

    Attributes:
        name: What it is called.
        places: By path of a list of modules, the place of the one that goes; None where the path is that of a single module.
        config: Entries of the denoiser's configuration afterwards.
    """

    name: str
    places: dict[str, int | None]
    config: dict[str, JsonValue]


def objection(config: Config) -> str:
    """Why nothing of a denoiser can go, in a few words; an empty text where something may.

    Args:
        config: The denoiser's.
    """
    kind = config.get("_class_name")
    if kind != UNET and not any(config.get(key) for key in LISTS.values()):
        return f"The configuration of {kind} cannot say which of its blocks are gone"
    if any(config.get(key) for key in BY_PLACE):
        return f"This {kind} has blocks of several kinds, named by their places"
    others = sorted({*config.get("down_block_types", ()), *config.get("up_block_types", ())} - set(LEVELS))
    if others:
        return f"This {kind} has levels whose layers are not alike ({', '.join(others)})"
    depths = config.get("transformer_layers_per_block")
    if isinstance(depths, Sequence) and any(isinstance(depth, Sequence) for depth in depths):
        return f"This {kind} has layers of several depths, named by their places"
    return ""


def removals(config: Config) -> list[Removal]:
    """What of a denoiser can go next; the last block of a transformer's lists and a layer of each of a UNet's levels stay.

    Args:
        config: Of a denoiser without objection.
    """
    return _of_unet({**DEFAULTS, **config}) if "down_block_types" in config else _of_transformer(config)


def most_removals(config: Config) -> int:
    """How much can go one after the other."""
    count = 0
    while found := removals(config):
        count, config = count + 1, {**config, **found[0].config}
    return count


def leave_out(denoiser: nn.Module, removal: Removal) -> dict[str, nn.Module]:
    """Takes a part away in place; returns the modules that were there before, by path."""
    from torch import nn

    replaced = {path: denoiser.get_submodule(path) for path in removal.places}
    for path, place in removal.places.items():
        left = None if place is None else nn.ModuleList(module for number, module in enumerate(replaced[path].children()) if number != place)
        _put(denoiser, path, left)
    return replaced


@contextmanager
def left_out(denoiser: nn.Module, removal: Removal) -> Iterator[None]:
    """A denoiser without a part, which afterwards is there again."""
    replaced = leave_out(denoiser, removal)
    try:
        yield
    finally:
        for path, module in replaced.items():
            _put(denoiser, path, module)


def _put(denoiser: nn.Module, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(denoiser.get_submodule(parent), name, module)


def _of_transformer(config: Config) -> list[Removal]:
    """All blocks but the last of each list, which in some families ends the way of the text."""
    return [
        Removal(name=f"block {place} of {name}", places={name: place}, config={key: config[key] - 1})
        for name, key in LISTS.items()
        for place in range((config.get(key) or 0) - 1)
    ]


def _of_unet(config: Config) -> list[Removal]:
    layers = config["layers_per_block"]
    counts = [layers] * len(config["down_block_types"]) if isinstance(layers, int) else list(layers)
    found = [removal for level in range(len(counts)) if counts[level] > 1 for removal in _of_level(config, counts, level)]
    if config["mid_block_type"] is not None:
        found.append(Removal(name="mid_block", places={"mid_block": None}, config={"mid_block_type": None}))
    return found


def _of_level(config: Config, counts: list[int], level: int) -> list[Removal]:
    """One layer on the way down with one on the way up, where the channels of what then meets are the same."""
    channels, last = config["block_out_channels"], len(counts) - 1
    own, above, below = channels[level], channels[max(level - 1, 0)], channels[min(level + 1, last)]
    count = counts[level]
    fewer = [*counts[:level], count - 1, *counts[level + 1 :]]
    changed: dict[str, JsonValue] = {"layers_per_block": fewer[0] if len(set(fewer)) == 1 else list(fewer)}
    down, up = f"down_blocks.{level}", f"up_blocks.{last - level}"
    # Only the first layer down meets what the level above left. The first one up meets what the level below left, and the last one what the
    # level above handed over; all others meet channels of their own level.
    ways_down = [place for place in range(count) if place > 0 or above == own]
    ways_up = [place for place in range(count + 1) if (place > 0 or below == own) and (place < count or above == own)]
    return [
        Removal(
            name=f"layer {gone_down} of {down} and layer {gone_up} of {up}",
            places={
                **_places(down, gone_down, config["down_block_types"][level]),
                **_places(up, gone_up, config["up_block_types"][last - level]),
            },
            config=changed,
        )
        for gone_down, gone_up in product(ways_down, ways_up)
    ]  # fmt: skip


def _places(block: str, place: int, kind: str) -> dict[str, int | None]:
    return {f"{block}.{name}": place for name in (("resnets", "attentions") if kind in WITH_ATTENTION else ("resnets",))}
