"""How many more sequences a second distillation takes on all visible GPUs than on one of them.

    python tests/benchmarks/gpu/distillation.py [--shape llama-1b] [--tokens 512,2048] [--device cpu] [--save FOLDER]

Teacher and student have random weights of the same shape, the student's with noise of 2 % of each tensor's deviation, so that there is something
to learn. Training goes on to its last step, whether or not it helps, and every step must have changed the student. On a CPU two processes train
tiny models, which shows only that it works.

On two H200 of one host (2026-11-30, NVLink multicast off; rows in results/), llama-1b: 11.1 and 16.1 sequences of 512 tokens a second, 1.45 times as
many; 8.78 and 15.6 of 2,048, 1.78 times. The gradients in float32 that a step exchanges are 5 GB, whatever the length of its sequence: a step of 512
tokens takes 90 ms on one and 124 on two, one of 2,048 tokens 114 and 128. Two days before, on another host, with a student that was its teacher,
1.53 and 1.43 times.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
import time
from pathlib import Path

import results

from genopt.techniques.data_parallel import Team, run, visible_gpus
from genopt.techniques.distillation_params import DistillParams
from genopt.testing.random_models import LLAMA_SHAPES, provide_random_llama

WARM, STEPS = 4, 24
NOISE = 0.02
"""Of the student's weights, as a share of each tensor's standard deviation."""
PROBED = 8
"""Weights that are looked at after each step."""


def train(team: Team, model: Path, tokens: int, out: Path) -> None:
    """Writes sequences a second, from the end of the first steps to that of the last."""
    import torch

    ends = steps(team, model, tokens)
    gc.collect()
    torch.cuda.empty_cache()  # the one on one GPU runs in this process, which goes on
    if team.rank == 0:
        out.write_text(json.dumps(team.size * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])), encoding="utf-8")


def steps(team: Team, model: Path, tokens: int) -> list[float]:
    """When each step of a training ended; of the first process alone."""
    import torch

    from genopt.models.checkpoint import load_model
    from genopt.techniques import distillation

    distillation.PATIENCE = STEPS  # it trains to its end
    torch.manual_seed(0)
    teacher, student = load_model(model), load_model(model, "float32")
    pieces = torch.randint(4, student.config.vocab_size, (32, tokens)).tolist()
    texts = distillation.Texts(pieces[:-2], pieces[-2:])
    torch.manual_seed(1)  # the same noise in every process
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(torch.randn_like(weight), alpha=NOISE * weight.std().item())
    *_, last = student.parameters()
    probes = [last.detach().flatten()[:PROBED].clone()]
    ends: list[float] = []

    def note(message: str) -> None:
        if message.startswith("step "):
            ends.append(time.monotonic())
            probes.append(last.detach().flatten()[:PROBED].clone())

    distillation.distill(teacher, student, texts, DistillParams(steps=STEPS, max_seq_length=tokens), 600.0, note, team)
    if team.rank == 0:
        assert len(ends) == STEPS, f"training ended after {len(ends)} of {STEPS} steps"
        assert not any(torch.equal(before, after) for before, after in itertools.pairwise(probes)), "a step left the student as it was"
    return ends


def tiny(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=64,
    )).save_pretrained(folder)  # fmt: skip
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(LLAMA_SHAPES), default="llama-1b")
    parser.add_argument("--tokens", default="512,2048")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    results.add_argument(parser)
    asked = parser.parse_args()
    gpus = visible_gpus() if asked.device == "cuda" else []
    count = len(gpus) or 2
    if asked.device == "cuda" and len(gpus) < 2:
        parser.error("this needs two visible GPUs; or give --device cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        if gpus:
            provide_random_llama(model, asked.shape)
        else:
            tiny(model)
        for tokens in map(int, asked.tokens.split(",")):
            found = {}
            for size in (1, count):
                run(train, model, tokens, out := folder / f"{tokens}-{size}.json", gpus=gpus[:size], processes=size)
                found[size] = json.loads(out.read_text(encoding="utf-8"))
            print(
                f"{tokens} tokens: {found[1]:.2f} sequences/s on 1 ({found[1] * tokens:,.0f} tokens/s), {found[count]:.2f} on {count} "
                f"({found[count] * tokens:,.0f} tokens/s), {found[count] / found[1]:.2f} times as many",
                flush=True,
            )
            for size, rate in found.items():
                subject, figures = f"{asked.shape}, {tokens} tokens", {"sequences/s": rate, "tokens/s": rate * tokens}
                results.save(asked.save, "distillation", subject, f"on {size}", figures, {"steps": STEPS, "noise": NOISE})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
