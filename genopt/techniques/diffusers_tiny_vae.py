"""Replaces a pipeline's VAE with a tiny autoencoder that was given beside the model (diffusers' AutoencoderTiny, the layout of TAESD).

Such a decoder takes latents as the denoiser leaves them, so that its own scaling factor is 1 whatever the pipeline's is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from genopt.errors import InfeasibleError
from genopt.models.given import GivenParams
from genopt.models.headers import read_json
from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext

TINY = "AutoencoderTiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class TinyVae(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_tiny_vae"
    version = 1
    phase = 10
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized"})

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(GivenParams, params, cls.name)
        if not (source / "vae" / "config.json").is_file():
            raise InfeasibleError(f"{source} has no VAE that a tiny one could replace; leave {cls.name} out.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: steps of the denoiser stay what they are, and images lose some detail."""
        return before.risked(0.7)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        digest = parse_settings(GivenParams, params, cls.name).given
        folder = context.given_folder(digest)
        _require_same_latents(read_json(source / "vae" / "config.json"), folder)
        progress(f"replacing the VAE with {TINY} {digest[:12]}")
        shutil.copytree(source, destination, ignore=lambda at, _: {"vae"} if Path(at) == source else set(), dirs_exist_ok=True)
        (destination / "vae").mkdir()
        for name in ("config.json", WEIGHTS):
            shutil.copyfile(folder / name, destination / "vae" / name)
        index = read_json(source / "model_index.json") | {"vae": ["diffusers", TINY]}
        (destination / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _require_same_latents(replaced: dict[str, Any], folder: Path) -> None:
    """Refuses a folder that is no tiny autoencoder, or one of other latents than the pipeline's."""
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise InfeasibleError(f"{folder} has no config.json with {WEIGHTS}; save the autoencoder with diffusers' save_pretrained.")
    tiny = read_json(folder / "config.json")
    if tiny.get("_class_name") != TINY:
        raise InfeasibleError(f"{folder} holds {tiny.get('_class_name')}; give an {TINY} of diffusers.")
    wanted, found = (config.get("latent_channels", 4) for config in (replaced, tiny))
    if wanted != found:
        raise InfeasibleError(f"{folder} decodes latents of {found} channels, the pipeline makes {wanted}; give the tiny VAE of this model's family.")
    enlargements = (replaced.get("block_out_channels", (64,)), tiny.get("decoder_block_out_channels", (64,) * 4))
    wanted, found = (2 ** (len(widths) - 1) for widths in enlargements)
    if wanted != found:
        raise InfeasibleError(f"{folder} enlarges latents {found} times, the pipeline's VAE {wanted}; give the tiny VAE of this model's family.")
    if tiny.get("scaling_factor", 1.0) != 1.0:
        raise InfeasibleError(f"{folder} has the scaling factor {tiny['scaling_factor']}; give a tiny VAE that takes latents as they are (1.0).")
