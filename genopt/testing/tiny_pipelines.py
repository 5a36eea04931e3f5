"""Diffusion pipelines that are real in everything but size: random weights in the layout that diffusers saves.

The components have two resolutions or two layers each, so that skipping, caching and quantizing find something to work on.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genopt.testing.clip_tokenizer import clip_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5Tokenizer

WORDS = ("a", "an", "of", "handwritten", "digit", "photo")
CONTEXT = 16
WIDTH = 32
"""Of text embeddings."""
CLASSES = {0: "a digit, a handwritten digit", 1: "a photo of a digit", 2: "a photo", **{number: f"digit {number}" for number in range(3, 12)}}
"""What DiT's pipeline makes images of."""
SAMPLE = 16
"""Side of the latents; images have twice as many pixels."""


def write_tiny_stable_diffusion(folder: Path) -> Path:
    """Writes a pipeline in the layout of Stable Diffusion 1 in float32, and returns its folder.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(_clip_text(tokenizer)), tokenizer=tokenizer, unet=_unet(cross_attention_dim=WIDTH),
        scheduler=DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_sdxl(folder: Path) -> Path:
    """Writes a pipeline in the layout of Stable Diffusion XL in float32, with both of its text encoders, and returns its folder.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    sizes = 6 * 8  # the original's size, its crop and the image's size, each as a sinusoid
    unet = _unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTH + sizes
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(_clip_text(tokenizer)), text_encoder_2=CLIPTextModelWithProjection(_clip_text(tokenizer)),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(**_NOISE, steps_offset=1), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_pixart(folder: Path) -> Path:
    """Writes a pipeline in the layout of PixArt-Alpha in float32, a transformer on patches with text from T5, and returns its folder.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    tokenizer = letter_tokenizer(CONTEXT)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, cross_attention_dim=32, caption_channels=WIDTH, sample_size=SAMPLE, patch_size=2,
        in_channels=4, out_channels=8, norm_num_groups=8, use_additional_conditions=False,
    )  # fmt: skip
    pipeline = PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=T5EncoderModel(_t5(tokenizer, WIDTH)), vae=_vae(), transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(**_NOISE),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_sd3(folder: Path) -> Path:
    """Writes a pipeline in the layout of Stable Diffusion 3 in float32, with its three text encoders, and returns its folder.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    torch.manual_seed(0)
    clip, letters = _clip_tokenizer(), letter_tokenizer(CONTEXT)
    transformer = SD3Transformer2DModel(
        sample_size=SAMPLE, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=32, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=SAMPLE,
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(_clip_text(clip)) for _ in range(2)]
    pipeline = StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=clip, tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(_t5(letters, 2 * WIDTH)), tokenizer_3=letters, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_flux(folder: Path) -> Path:
    """Writes a pipeline in the layout of FLUX.1 in float32, and returns its folder; its images have 128 x 128 pixels unless others are asked for.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    torch.manual_seed(0)
    clip, letters = _clip_tokenizer(), letter_tokenizer(CONTEXT)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipeline = FluxPipeline(
        vae=_vae(widths=(16,), shift_factor=0.1, scaling_factor=0.36), text_encoder=CLIPTextModel(_clip_text(clip)), tokenizer=clip,
        text_encoder_2=T5EncoderModel(_t5(letters, WIDTH)), tokenizer_2=letters, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_dit(folder: Path) -> Path:
    """Writes a pipeline in the layout of DiT in float32, which makes images of classes, and returns its folder.

    Args:
        folder: Created if missing.
    """
    import torch
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, sample_size=SAMPLE, patch_size=2, in_channels=4, out_channels=8, norm_num_groups=8
    )
    pipeline = DiTPipeline(transformer=transformer, vae=_vae(), scheduler=DDIMScheduler(**_NOISE, clip_sample=False))
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"  # in which DiT's authors wrote the names, and `save_pretrained` does not
    index.write_text(json.dumps({**json.loads(index.read_text(encoding="utf-8")), "id2label": CLASSES}), encoding="utf-8")
    return folder


def write_tiny_vae(folder: Path, **options: Any) -> Path:
    """Writes an autoencoder in the layout of TAESD that fits the latents of these pipelines, and returns its folder.

    Args:
        folder: Created if missing.
        options: What its configuration holds instead.
    """
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    layers: dict[str, Any] = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**{**layers, **widths, **options}).save_pretrained(folder)
    return folder


def write_tiny_lora(folder: Path, pipeline: Path) -> Path:
    """Writes random low-rank changes of the attention of a pipeline's UNet, as peft does, and returns their folder.

    Args:
        folder: Created if missing.
        pipeline: In the layout of Stable Diffusion.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(2)
    unet = StableDiffusionPipeline.from_pretrained(pipeline).unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def letter_tokenizer(context: int) -> T5Tokenizer:
    """A tokenizer for T5 that reads letters, digits and spaces, one by one.

    Args:
        context: Tokens to which prompts are cut.
    """
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((character, -2.0) for character in "▁" + string.ascii_lowercase + string.digits)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=context)


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "stable-diffusion": write_tiny_stable_diffusion,
    "stable-diffusion-xl": write_tiny_sdxl,
    "stable-diffusion-3": write_tiny_sd3,
    "flux": write_tiny_flux,
    "pixart": write_tiny_pixart,
    "dit": write_tiny_dit,
}
"""How to write a pipeline, by family."""

_NOISE: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise of Stable Diffusion 1, from its published configuration."""


def _vae(widths: tuple[int, ...] = (16, 32), **options: Any) -> AutoencoderKL:
    """Each width after the first halves the sides of what it decodes once more."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4, norm_num_groups=8, sample_size=2 * SAMPLE, **options,
    )  # fmt: skip


def _unet(**options: Any) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=SAMPLE, in_channels=4, out_channels=4, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    )  # fmt: skip


def _t5(tokenizer: T5Tokenizer, width: int) -> T5Config:
    from transformers import T5Config

    return T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")


def _clip_tokenizer() -> CLIPTokenizer:
    return clip_tokenizer(WORDS, context=CONTEXT)


def _clip_text(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, projection_dim=WIDTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
