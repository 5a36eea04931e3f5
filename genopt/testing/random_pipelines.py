"""Diffusion pipelines whose denoisers have a real shape, with random weights: speed depends on the shape alone, the images mean nothing.

Text encoders have the real widths and two layers, and the decoder the real resolutions with few channels: steps spend no time in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genopt.testing.clip_tokenizer import clip_tokenizer
from genopt.testing.tiny_pipelines import WORDS, letter_tokenizer

CLIP_CONTEXT, T5_CONTEXT = 77, 512
SDXL: Mapping[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
"""The UNet of Stable Diffusion XL, from its published configuration; images have 1024 x 1024 pixels."""
FLUX: Mapping[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
"""The transformer of FLUX.1, from its published configuration."""
FLUX_SHARE = 2
"""Every how many of its blocks are kept: all have the same shape, and half of them tell as much in half the time and memory."""


@contextmanager
def _made_in_bfloat16() -> Iterator[None]:
    """Random weights are drawn where that is fast."""
    import torch

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def write_random_sdxl(folder: Path) -> Path:
    """Writes a pipeline with the denoiser of Stable Diffusion XL in bfloat16, and returns its folder.

    Args:
        folder: Created if missing.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer(WORDS, context=CLIP_CONTEXT)
    with _made_in_bfloat16():
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(4), text_encoder=CLIPTextModel(_clip_text(tokenizer, 768)), unet=UNet2DConditionModel(**SDXL),
            text_encoder_2=CLIPTextModelWithProjection(_clip_text(tokenizer, 1280)), tokenizer=tokenizer, tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
            add_watermarker=False, force_zeros_for_empty_prompt=True,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_random_flux(folder: Path) -> Path:
    """Writes a pipeline with every other block of FLUX.1's denoiser in bfloat16, and returns its folder.

    Args:
        folder: Created if missing.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    clip, letters = clip_tokenizer(WORDS, context=CLIP_CONTEXT), letter_tokenizer(T5_CONTEXT)
    text = T5Config(vocab_size=len(letters), d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj="gated-gelu")
    shape = {**FLUX, "num_layers": FLUX["num_layers"] // FLUX_SHARE, "num_single_layers": FLUX["num_single_layers"] // FLUX_SHARE}
    with _made_in_bfloat16():
        pipeline = FluxPipeline(
            vae=_vae(16), text_encoder=CLIPTextModel(_clip_text(clip, 768)), tokenizer=clip, text_encoder_2=T5EncoderModel(text), tokenizer_2=letters,
            transformer=FluxTransformer2DModel(**shape), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


PIPELINE_SHAPES: Mapping[str, Callable[[Path], Path]] = {"sdxl": write_random_sdxl, "flux-half": write_random_flux}
"""How to write a pipeline, by its shape."""


def _vae(latents: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latents, norm_num_groups=8, sample_size=1024, force_upcast=False, shift_factor=0.0,
    )  # fmt: skip


def _clip_text(tokenizer: Any, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=width // 64,
        max_position_embeddings=CLIP_CONTEXT, projection_dim=width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
