"""Trains the pipeline that genopt knows as `digits-diffusion`: python jobs/digits_diffusion/train.py OUT --device cuda

Takes minutes on a GPU, and half an hour on one core of an x86-64 processor: what is shipped came of `--minutes 28` there, and 98 % of its
images are read right. Needs torch, diffusers, transformers, and scikit-learn for its digits; where the latter is
missing, give a file that `--export-data` wrote elsewhere as `--data`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import captions
import digits
import parts
import stages
from diffusers import StableDiffusionPipeline
from progress import Stage, say
from reading import read_images
from transformers import ResNetForImageClassification, ViTImageProcessor
from transformers.utils import logging

SOURCE = "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0), as in scikit-learn"
CLASSIFIER_TIME, VAE_TIME = 0.05, 0.2
"""Shares of the time, where it is limited; the denoiser has the rest."""
STEPS, GUIDANCE = 50, 7.5
"""What StableDiffusionPipeline takes by default."""


def main() -> None:
    args = arguments()
    if args.export_data is not None:
        digits.export(args.export_data)
        return
    if args.out is None or args.out.exists():
        raise SystemExit("Give a folder OUT that does not exist yet.")
    logging.disable_progress_bar()
    started = time.monotonic()
    device = torch.device(args.device)
    be_deterministic(args.seed)
    train, held_out = (part.to(device) for part in digits.load(args.data, args.seed))
    limit = None if args.minutes is None else 60 * args.minutes
    pipeline, classifier, steps = trained(train, args, device, limit)
    partial = args.out.with_name(f".{args.out.name}.partial")
    save(pipeline, classifier, partial)
    say("reading images of the saved pipeline")
    reread = StableDiffusionPipeline.from_pretrained(partial, dtype=torch.float32, local_files_only=True).to(device)
    reread.set_progress_bar_config(disable=True)
    card = {
        "source": SOURCE,
        "prompts": [text for text, _ in captions.evaluation_prompts()],
        "classifier_accuracy_on_held_out_digits": stages.accuracy(classifier, held_out),
        **read_images(reread, classifier, args.images, args.inference_steps, GUIDANCE),
        "training_steps": steps, "batch": args.batch, "seed": args.seed, "seconds": round(time.monotonic() - started),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }  # fmt: skip
    (partial / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    partial.rename(args.out)
    say(f"{card['read_right']:.1%} of {card['images']} images are read right; {args.out} is written")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder to write")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--minutes", type=float, help="end the training then, whatever is left of its steps; the last images take another minute or two"
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal weights on equal devices, where time is not limited")
    parser.add_argument("--steps", type=int, default=4000, help="of the denoiser")
    parser.add_argument("--vae-steps", type=int, default=500)
    parser.add_argument("--classifier-steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=stages.BATCH, help="images in a step of the denoiser")
    parser.add_argument("--images", type=int, default=4, help="images of each prompt that are read at the end")
    parser.add_argument("--inference-steps", type=int, default=STEPS, help="denoising steps of those images")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="digits that --export-data wrote; otherwise scikit-learn's")
    parser.add_argument("--export-data", type=Path, metavar="FILE.npz", help="write the digits there and end")
    return parser.parse_args()


def be_deterministic(seed: int) -> None:
    """Equal seeds give equal weights on equal devices."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def trained(
    data: digits.Digits, args: argparse.Namespace, device: torch.device, limit_s: float | None
) -> tuple[StableDiffusionPipeline, ResNetForImageClassification, dict[str, int]]:
    """The trained pipeline and classifier, and the steps that each part took."""
    generator = torch.Generator(device).manual_seed(args.seed)
    started = time.monotonic()
    reading = Stage("classifier", args.classifier_steps, limit_s and CLASSIFIER_TIME * limit_s)
    classifier = parts.classifier(captions.DIGITS).to(device)
    stages.train_classifier(classifier, data, reading, generator)
    restoring = Stage("autoencoder", args.vae_steps, limit_s and VAE_TIME * limit_s)
    vae = parts.vae().to(device)
    stages.train_vae(vae, data, restoring, generator)
    denoising = Stage("denoiser", args.steps, limit_s and limit_s - (time.monotonic() - started))
    tokenizer = parts.tokenizer()
    text_encoder, unet = parts.text_encoder(tokenizer).to(device), parts.unet().to(device)
    stages.train_denoiser(unet, text_encoder, vae, tokenizer, parts.scheduler(), data, denoising, generator, args.batch)
    steps = {stage.name: stage.done for stage in (reading, restoring, denoising)}
    return parts.pipeline(vae, text_encoder, tokenizer, unet), classifier, steps


def save(pipeline: StableDiffusionPipeline, classifier: ResNetForImageClassification, folder: Path) -> None:
    """Writes the pipeline in half precision, and the classifier beside its components."""
    pipeline.to(torch.float16).save_pretrained(folder)
    classifier.save_pretrained(folder / "classifier")
    half = [0.5, 0.5, 0.5]
    size = {"height": digits.SIDE, "width": digits.SIDE}
    ViTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(folder / "classifier")


if __name__ == "__main__":
    main()
