"""The three trainings: a classifier that reads digits, an autoencoder, and the denoiser with its text encoder."""

from __future__ import annotations

import copy
import math

import captions
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from digits import Digits, vary
from progress import Stage
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, ResNetForImageClassification

BATCH = 32
KL_WEIGHT = 1e-5
UNCONDITIONAL = 0.12
"""Share of training images without a prompt, for classifier-free guidance."""
SNR_LIMIT = 5.0
"""Weights of the loss end here (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023)."""
AVERAGE_OVER = 0.999
COPIES = 8
"""Variations of each image that the denoiser sees."""


def as_rgb(images: Tensor) -> Tensor:
    """Three equal channels."""
    return images.expand(-1, 3, -1, -1)


def train_classifier(model: ResNetForImageClassification, data: Digits, stage: Stage, generator: torch.Generator) -> None:
    """Trains on varied images."""
    optimizer = _optimizer(model, 3e-3)
    model.train()
    for _ in stage:
        index = _draw(len(data.labels), BATCH, generator)
        logits = model(as_rgb(vary(data.images[index], generator))).logits
        stage.loss = _step(functional.cross_entropy(logits, data.labels[index]), optimizer, stage)
    model.eval()


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, data: Digits) -> float:
    """Share of images that it reads right."""
    return float((model(as_rgb(data.images)).logits.argmax(1) == data.labels).float().mean())


def train_vae(model: AutoencoderKL, data: Digits, stage: Stage, generator: torch.Generator) -> None:
    """Trains on reconstruction, with a slight pull of the latents to a normal distribution, and sets the scale of latents."""
    optimizer = _optimizer(model, 1e-3)
    model.train()
    for _ in stage:
        images = as_rgb(vary(data.images[_draw(len(data.labels), BATCH, generator)], generator))
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        restored = model.decode(posterior.mean + posterior.std * noise).sample
        loss = functional.l1_loss(restored, images) + functional.mse_loss(restored, images) + KL_WEIGHT * posterior.kl().mean()
        stage.loss = _step(loss, optimizer, stage)
    model.eval()
    latents = torch.cat([mean for mean, _ in _encoded(model, data.images)])
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


def train_denoiser(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, data: Digits,
    stage: Stage, generator: torch.Generator, batch: int = BATCH,
) -> None:  # fmt: skip
    """Trains both to predict the noise in latents under their captions; what is left in them is the average over the last steps."""
    device = data.images.device
    means, deviations = zip(*(pair for _ in range(COPIES) for pair in _encoded(vae, vary(data.images, generator))), strict=True)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    texts, empty = captions.caption_tokens(tokenizer).to(device), captions.empty_tokens(tokenizer).to(device)
    signal = scheduler.alphas_cumprod.to(device)
    both = nn.ModuleList([unet, text_encoder]).train()
    average = copy.deepcopy(both)
    optimizer = _optimizer(both, 1e-3)
    for step in stage:
        index = _draw(len(mean), batch, generator)
        clean = mean[index] + deviation[index] * torch.randn(mean[index].shape, generator=generator, device=device)
        clean = clean * vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=generator, device=device)
        time = _draw(len(signal), batch, generator)
        share = signal[time].view(-1, 1, 1, 1)
        digit = index % len(data.labels)
        tokens = texts[data.labels[digit], data.styles[digit], _draw(texts.shape[2], batch, generator)]
        dropped = torch.rand(batch, generator=generator, device=device) < UNCONDITIONAL
        states = text_encoder(torch.where(dropped[:, None], empty, tokens)).last_hidden_state
        predicted = unet(share.sqrt() * clean + (1 - share).sqrt() * noise, time, states).sample
        ratio = signal[time] / (1 - signal[time])
        weight = ratio.clamp(max=SNR_LIMIT) / ratio
        loss = (weight * (predicted - noise).square().mean((1, 2, 3))).mean()
        stage.loss = _step(loss, optimizer, stage)
        _follow(average, both, min(AVERAGE_OVER, (1 + step) / (10 + step)))
    both.load_state_dict(average.state_dict())
    both.eval()


@torch.no_grad()
def _encoded(vae: AutoencoderKL, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Means and deviations of latents."""
    posteriors = (vae.encode(as_rgb(part)).latent_dist for part in images.split(64))
    return [(posterior.mean, posterior.std) for posterior in posteriors]


def _draw(end: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(end, (count,), generator=generator, device=generator.device)


def _optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2, fused=True)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, stage: Stage) -> Tensor:
    """One step; the rate rises over the first steps and falls as a cosine to the stage's end."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * min(1.0, (stage.done + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * stage.share))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
