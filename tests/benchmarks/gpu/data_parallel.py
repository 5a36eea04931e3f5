"""How much faster a model is distilled on several GPUs than on one of them.

    python tests/benchmarks/gpu/data_parallel.py [--shape llama-1b] [--layers 2] [--steps 12] [--tokens 512]

A model of a real shape with random weights teaches a copy that lacks its last layers, as `distill` does, first on one GPU, then on all
that are there, a sequence of so many tokens on each. Prints sequences per second, which leaves out the first two steps, and the ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from genopt.models.checkpoint import load_model
from genopt.models.decoder import decoder_layers, without_layers
from genopt.techniques.distill import DistillParams, distill
from genopt.techniques.replicas import visible_gpus
from genopt.testing.random_models import LLAMA_SHAPES, write_random_llama

WARM_UP = 2


def sequences_per_second(model: Path, asked: argparse.Namespace, others: list[torch.device]) -> float:
    """The pace of training on the first GPU and these."""
    teacher = load_model(model)
    count = len(decoder_layers(teacher))
    student = without_layers(load_model(model, "float32"), range(count - asked.layers, count))
    random = torch.Generator().manual_seed(0)
    pieces = torch.randint(0, teacher.config.vocab_size, (asked.steps * (1 + len(others)) + 2, asked.tokens), generator=random).tolist()
    ended: list[float] = []

    def note(text: str) -> None:
        if text.startswith("step"):
            ended.append(time.monotonic())

    distill(teacher, student, pieces, DistillParams(steps=asked.steps), 3600.0, note, others)
    steps = [later - earlier for earlier, later in zip(ended[WARM_UP - 1 :], ended[WARM_UP:], strict=False)]
    return (1 + len(others)) / median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(LLAMA_SHAPES), default="llama-1b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512)
    asked = parser.parse_args()
    gpus = visible_gpus()
    with tempfile.TemporaryDirectory() as folder:
        model = write_random_llama(Path(folder) / "model", asked.shape)
        alone = sequences_per_second(model, asked, [])
        torch.cuda.empty_cache()
        print(f"1 GPU: {alone:.2f} sequences a second", flush=True)
        together = sequences_per_second(model, asked, gpus[1:])
        print(f"{len(gpus)} GPUs: {together:.2f} sequences a second, {together / alone:.2f} times as many")


if __name__ == "__main__":
    main()
