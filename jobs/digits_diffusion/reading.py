"""How many of a pipeline's images a classifier reads right."""

from __future__ import annotations

import captions
import torch
from diffusers import StableDiffusionPipeline
from progress import Stage
from torch import Tensor
from transformers import ResNetForImageClassification


@torch.no_grad()
def read_images(
    pipeline: StableDiffusionPipeline, classifier: ResNetForImageClassification, per_prompt: int, steps: int, guidance: float
) -> dict[str, object]:  # fmt: skip
    """Shares of images read right, in all and by digit, and the mean share of ink of images that asked for thin and bold digits.

    Args:
        pipeline: What makes the images.
        classifier: What reads them.
        per_prompt: Images of each prompt, from the seeds 0, 1, ...
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
    """
    prompts = captions.evaluation_prompts()
    right, ink = {digit: [] for digit in range(10)}, {"thin": [], "bold": []}
    stage = Stage("reading", per_prompt)
    for seed in stage:
        images = generate(pipeline, [text for text, _ in prompts], seed, steps, guidance)
        read = classifier((2 * images - 1).to(classifier.device)).logits.argmax(1).tolist()
        for (text, digit), found, image in zip(prompts, read, images, strict=True):
            right[digit].append(found == digit)
            for style in ink:
                if style in text:
                    ink[style].append(1 - float(image.mean()))
        every = [value for values in right.values() for value in values]
        stage.loss = 1 - sum(every) / len(every)
    return {
        "read_right": sum(every) / len(every),
        "read_right_by_digit": {captions.DIGITS[digit]: sum(values) / len(values) for digit, values in right.items()},
        "mean_ink": {style: sum(values) / len(values) for style, values in ink.items()},
        "images": len(every),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """Images (n, 3, height, width) between 0 and 1 on the CPU; noise is drawn there too, so that seeds mean the same on every device."""
    generators = [torch.Generator().manual_seed(1000 * seed + number) for number in range(len(prompts))]
    found = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt").images
    return found.float().cpu()
