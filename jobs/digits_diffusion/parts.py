"""The untrained parts of the pipeline, in the layout of Stable Diffusion; all weights in half precision take less than 8 MB."""

from __future__ import annotations

from captions import words
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from digits import SIDE
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ResNetConfig, ResNetForImageClassification

from genopt.testing.clip_tokenizer import clip_tokenizer

CONTEXT = 16
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIDE = SIDE // 4


def tokenizer() -> CLIPTokenizer:
    """Reads any text; words of the captions are one token each."""
    return clip_tokenizer(words(), context=CONTEXT)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """Two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=CONTEXT, projection_dim=TEXT_WIDTH, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )  # fmt: skip


def vae() -> AutoencoderKL:
    """Four latent channels at a quarter of the images' resolution."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
        latent_channels=LATENT_CHANNELS, norm_num_groups=8, sample_size=SIDE,
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """Two resolutions, with attention on both."""
    return UNet2DConditionModel(
        block_out_channels=(64, 96), layers_per_block=1, sample_size=LATENT_SIDE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        norm_num_groups=16, attention_head_dim=16, cross_attention_dim=TEXT_WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """The noise of Stable Diffusion 1, from its published configuration."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )  # fmt: skip


def pipeline(vae: AutoencoderKL, text_encoder: CLIPTextModel, tokens: CLIPTokenizer, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The whole of it."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokens, unet=unet, scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def classifier(labels: tuple[str, ...]) -> ResNetForImageClassification:
    """A residual network with three stages."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
    )  # fmt: skip
