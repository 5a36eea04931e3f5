"""Trains a damaged model for a short while to predict what the original predicts.

The loss is the KL divergence from the original's to the model's distribution of each next token (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, at temperature 1), and beside it the distance of hidden states (as Jiao
et al., "TinyBERT", 2020), each layer's to that of the original which it is nearest to before training. It is taken on
calibration text, and on what the original writes itself where that is asked for. Now and then the divergence is measured on text that was held
out, which is what the gate's log-likelihood ratio comes to on average over all that the original thinks possible: the weights that were best there
are kept, those from before training among them, and training ends early where it no longer helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genopt.errors import DataError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext
from genopt.techniques.calibration import calibration_sequences
from genopt.techniques.data_parallel import ALONE, Team, run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

HELD_OUT = 2
"""Sequences that decide whether training helped."""
BEGINNING, TOGETHER = 16, 8
"""Tokens of calibration text that the original continues, and how many of its sequences are written at once."""
CHECKS, PATIENCE = 4, 2
"""How often held-out text is read during training, and after how many times without a gain training ends."""
LIMIT_SHARE = 0.5
"""Most of the stage's time that training may take; loading and saving need the rest."""


class DistillParams(Record):
    """Parameters.

    Attributes:
        steps: Updates of the weights, each on one sequence, or on one for every GPU.
        time_s: Seconds after which training ends although steps are left.
        learning_rate: Peak of AdamW's learning rate.
        max_seq_length: Tokens per sequence.
        hidden_weight: Weight of the hidden states' distance beside the divergence of what is predicted; 0 leaves it out, as models do whose
            hidden states have another width than the original's.
        written_sequences: Sequences that the original writes itself, which are trained on in turn with calibration text.
    """

    steps: int = Field(default=32, gt=0)
    time_s: float = Field(default=30.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    max_seq_length: int = Field(default=256, ge=8)
    hidden_weight: float = Field(default=0.0, ge=0)
    written_sequences: int = Field(default=0, ge=0)


class Distill:
    """See `genopt.techniques.base.Transform`."""

    name = "distill"
    version = 3
    phase = 30
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    needs_calibration = True
    gpu: GpuUse = "spread"
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
        chosen = parse_settings(DistillParams, params, cls.name)
        run(_train, source, destination, pieces_of(context.calibration, chosen), chosen, context, progress)


def _train(
    team: Team, source: Path, destination: Path, pieces: list[list[int]], chosen: DistillParams, context: TransformContext, progress: Progress
) -> None:  # fmt: skip
    import torch

    from genopt.models.checkpoint import load_model, save_model

    torch.manual_seed(context.seed)
    progress = team.heard(progress)
    progress("loading the original and the model to train")
    teacher, student = load_model(Path(context.original)), load_model(source, "float32")
    pieces = with_written(teacher, pieces, chosen, progress)
    distill(teacher, student, pieces, chosen, min(chosen.time_s, LIMIT_SHARE * context.time_limit_s), progress, team)
    if team.rank == 0:
        model = load_model(source)
        model.load_state_dict(student.state_dict())  # rounds to the checkpoint's precision
        save_model(model, source, destination)


def pieces_of(calibration: str | None, params: DistillParams) -> list[list[int]]:
    """Token ids of calibration text to train on; the last ones are to be held out.

    Args:
        calibration: As in `TransformContext`.
        params: How long they are, and how many can be of use.

    Raises:
        DataError: There are too few.
    """
    length = params.max_seq_length
    wanted = calibration_sequences(calibration, length * (4 * params.steps + HELD_OUT))
    pieces = [ids[start : start + length] for ids in wanted for start in range(0, len(ids) - 1, length)]
    if len(pieces) <= HELD_OUT:
        raise DataError("The calibration text is too short to distill on; give a longer one with --calib-data.")
    return pieces


def with_written(teacher: PreTrainedModel, pieces: list[list[int]], params: DistillParams, progress: Progress) -> list[list[int]]:
    """The pieces in turn with what the original writes itself, where that is asked for; those to be held out stay the last ones."""
    if not params.written_sequences:
        return pieces
    progress(f"letting the original write {params.written_sequences} sequences")
    written = _written(teacher, pieces[:-HELD_OUT], params)
    return [piece for pair in zip_longest(written, pieces[:-HELD_OUT]) for piece in pair if piece] + pieces[-HELD_OUT:]


def distill(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    pieces: list[list[int]],
    params: DistillParams,
    limit_s: float,
    progress: Progress,
    team: Team = ALONE,
) -> tuple[float, float]:
    """Trains `student` in place and returns its divergence on held-out text before and after, in nats per token.

    Args:
        teacher: The original.
        student: In float32; its weights are the best ones on held-out text, which are those from before if training did not help.
        pieces: Token ids; the last ones are held out.
        params: How to train.
        limit_s: Seconds after which training ends.
        progress: Told how far it is.
        team: The processes that train copies of the student together, each on sequences of its own.
    """
    import torch

    progress = team.heard(progress)
    training, held_out = pieces[:-HELD_OUT], pieces[-HELD_OUT:]
    best = _Best(teacher, student, held_out, team)
    before, checks = best.divergence, 0
    with torch.no_grad():
        nearest = _nearest_layers(teacher, student, held_out[0]) if params.hidden_weight and _width(teacher) == _width(student) else []
    optimizer = torch.optim.AdamW(student.parameters(), lr=params.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    started, done = time.monotonic(), 0
    averaged = team.averaging(student)
    student.train()
    while done < params.steps and (elapsed := team.agreed(time.monotonic() - started)) < limit_s:
        # While it is on time its clock decides nothing, so that the same work gives the same bytes.
        share = done / params.steps if elapsed / limit_s <= (done + 1) / params.steps else elapsed / limit_s
        rate = params.learning_rate * min(1.0, (done + 1) / 4) * (0.1 + 0.9 * (1 - share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _divergence(teacher, student, training[(done * team.size + team.rank) % len(training)], nearest, params.hidden_weight)
        optimizer.zero_grad()
        loss.backward()
        averaged()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done += 1
        progress(f"step {done} of {params.steps}: loss {loss.item():.4f}")
        if share * CHECKS >= checks + 1:
            checks = int(share * CHECKS)
            progress(f"divergence on held-out text {best.check():.4f} at step {done}")
            if best.misses == PATIENCE:
                progress("training ends early: it no longer helps")
                break
    student.eval()
    best.check()
    best.restore()
    progress(f"divergence on held-out text {before:.4f} before and {best.divergence:.4f} after {done} steps")
    return before, best.divergence


class _Best:
    """A student's best weights so far on held-out text.

    Attributes:
        divergence: Theirs from the teacher, in nats per token.
        misses: How often the student was no better than they are, in a row.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, held_out: Sequence[list[int]], team: Team) -> None:
        self._teacher, self._student, self._held_out, self._team = teacher, student, held_out, team
        self._weights = {name: value.detach().clone() for name, value in student.state_dict().items()}
        self.divergence, self.misses = self._measure(), 0

    def check(self) -> float:
        """The divergence now; the weights are kept if it is the least."""
        found = self._measure()
        if found < self.divergence:
            self.divergence, self.misses = found, 0
            for name, value in self._student.state_dict().items():
                self._weights[name].copy_(value)
        else:
            self.misses += 1
        return found

    def restore(self) -> None:
        """Gives the student its best weights."""
        self._student.load_state_dict(self._weights)

    def _measure(self) -> float:
        import torch

        trains = self._student.training
        self._student.eval()
        with torch.no_grad():
            found = math.fsum(_divergence(self._teacher, self._student, piece).item() for piece in self._held_out) / len(self._held_out)
        self._student.train(trains)
        return self._team.agreed(found)


def _divergence(
    teacher: PreTrainedModel, student: PreTrainedModel, ids: list[int], nearest: Sequence[int] = (), hidden_weight: float = 0.0
) -> Tensor:  # fmt: skip
    """Mean KL divergence per token of one sequence, with the weighted distance of hidden states where layers are matched."""
    import torch

    from genopt.models import products

    batch = torch.tensor([ids], device=student.device)
    asked = {"input_ids": batch, "use_cache": False, "output_hidden_states": bool(nearest)}
    with torch.no_grad(), products.by_fp32(products.are_slow_in(teacher)):
        wanted = teacher(**asked)
    with products.autocast(student.device):
        found = student(**asked)
    ours, theirs = (torch.log_softmax(one.logits[0].float(), dim=-1) for one in (found, wanted))
    loss = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    if nearest:
        distances = [_distance(found.hidden_states[layer], wanted.hidden_states[place]) for layer, place in enumerate(nearest)]
        loss = loss + hidden_weight * torch.stack(distances).mean()
    return loss


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference as a share of the mean square of what is wanted."""
    return (found.float() - wanted.float()).square().mean() / wanted.float().square().mean()


def _nearest_layers(teacher: PreTrainedModel, student: PreTrainedModel, ids: list[int]) -> list[int]:
    """For the embedding and each layer of the student, which of the teacher's hidden states is nearest to its own; the last meets the last."""
    import torch

    batch = torch.tensor([ids], device=student.device)
    theirs, ours = (model(input_ids=batch, use_cache=False, output_hidden_states=True).hidden_states for model in (teacher, student))
    inner = [min(range(len(theirs) - 1), key=lambda place: float(_distance(state, theirs[place]))) for state in ours[:-1]]
    return [*inner, len(theirs) - 1]


def _width(model: PreTrainedModel) -> int:
    found: int = model.config.get_text_config(decoder=True).hidden_size
    return found


def _written(teacher: PreTrainedModel, beginnings: Sequence[Sequence[int]], params: DistillParams) -> list[list[int]]:
    """What the original writes after the beginnings of some calibration text, as it comes (temperature 1)."""
    import torch

    length = min(BEGINNING, params.max_seq_length // 2)
    prompts = [list(piece[:length]) for piece in beginnings if len(piece) >= length]
    found: list[list[int]] = []
    writer: Any = teacher  # annotated as if it were a part of it
    for start in range(0, params.written_sequences, TOGETHER):
        count = min(TOGETHER, params.written_sequences - start)
        batch = torch.tensor([prompts[(start + place) % len(prompts)] for place in range(count)], device=teacher.device)
        with torch.no_grad():
            written = writer.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_length=params.max_seq_length, max_length=params.max_seq_length, pad_token_id=0,
            )  # fmt: skip
        found += written.tolist()
    return found
