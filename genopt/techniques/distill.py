"""Trains a damaged model for a short while to predict what the original predicts.

The loss is the KL divergence from the original's to the model's distribution of each next token (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, at temperature 1), on calibration text. The result is kept
only if it is closer to the original on text that was held out.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genopt.errors import DataError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext
from genopt.techniques.calibration import calibration_sequences

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

HELD_OUT = 2
"""Sequences that decide whether training helped."""
LIMIT_SHARE = 0.5
"""Most of the stage's time that training may take; loading and saving need the rest."""


class DistillParams(Record):
    """Parameters.

    Attributes:
        steps: Updates of the weights, each on one sequence.
        time_s: Seconds after which training ends although steps are left.
        learning_rate: Peak of AdamW's learning rate.
        max_seq_length: Tokens per sequence.
    """

    steps: int = Field(default=32, gt=0)
    time_s: float = Field(default=30.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    max_seq_length: int = Field(default=256, ge=8)


class Distill:
    """See `genopt.techniques.base.Transform`."""

    name = "distill"
    version = 1
    phase = 30
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    needs_calibration = True
    gpu: GpuUse = "used"
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = None

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(DistillParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: the shapes stay."""
        return before

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import torch

        from genopt.models.checkpoint import load_model, save_model

        chosen = parse_settings(DistillParams, params, cls.name)
        torch.manual_seed(context.seed)
        wanted = calibration_sequences(context.calibration, chosen.max_seq_length * (4 * chosen.steps + HELD_OUT))
        pieces = [ids[start : start + chosen.max_seq_length] for ids in wanted for start in range(0, len(ids) - 1, chosen.max_seq_length)]
        if len(pieces) <= HELD_OUT:
            raise DataError("The calibration text is too short to distill on; give a longer one with --calib-data.")
        progress("loading the original and the model to train")
        teacher, model = load_model(Path(context.original)), load_model(source)
        student = load_model(source, "float32")
        distill(teacher, student, pieces, chosen, min(chosen.time_s, LIMIT_SHARE * context.time_limit_s), progress)
        model.load_state_dict(student.state_dict())  # rounds to the checkpoint's precision
        save_model(model, source, destination)


def distill(
    teacher: PreTrainedModel, student: PreTrainedModel, pieces: list[list[int]], params: DistillParams, limit_s: float, progress: Progress
) -> tuple[float, float]:
    """Trains `student` in place and returns its divergence on held-out text before and after, in nats per token.

    Args:
        teacher: The original.
        student: In float32; its weights are as before if training did not help.
        pieces: Token ids; the last ones are held out.
        params: How to train.
        limit_s: Seconds after which training ends.
        progress: Told how far it is.
    """
    import torch

    training, held_out = pieces[:-HELD_OUT], pieces[-HELD_OUT:]
    untrained = {name: value.detach().clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        before = math.fsum(_divergence(teacher, student, piece).item() for piece in held_out) / HELD_OUT
    optimizer = torch.optim.AdamW(student.parameters(), lr=params.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    started, done = time.monotonic(), 0
    student.train()
    while done < params.steps and time.monotonic() - started < limit_s:
        rate = params.learning_rate * min(1.0, (done + 1) / 4) * (0.1 + 0.9 * (1 - done / params.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _divergence(teacher, student, training[done % len(training)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done += 1
        progress(f"step {done} of {params.steps}: divergence {loss.item():.4f}")
    student.eval()
    with torch.no_grad():
        after = math.fsum(_divergence(teacher, student, piece).item() for piece in held_out) / HELD_OUT
    progress(f"divergence on held-out text {before:.4f} before and {after:.4f} after {done} steps")
    if not after < before:
        student.load_state_dict(untrained)
        return before, before
    return before, after


def _divergence(teacher: PreTrainedModel, student: PreTrainedModel, ids: list[int]) -> Tensor:
    """Mean KL divergence per token of one sequence."""
    import torch

    from genopt.models import products

    batch = torch.tensor([ids], device=student.device)
    with torch.no_grad(), products.by_fp32(products.are_slow_in(teacher)):
        wanted = torch.log_softmax(teacher(input_ids=batch, use_cache=False).logits[0].float(), dim=-1)
    with products.autocast(student.device):
        logits = student(input_ids=batch, use_cache=False).logits[0]
    found = torch.log_softmax(logits.float(), dim=-1)
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
