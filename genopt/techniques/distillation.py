"""The training behind `distill` and `distill_given`: a model learns for a short while to predict what the original predicts.

The loss is the KL divergence from the original's to the model's distribution of each next token (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, at temperature 1), and beside it the distance of hidden states (as Jiao
et al., "TinyBERT", 2020), each layer's to that of the original which it is nearest to before training. It is taken on
calibration text, and on what the original writes itself where that is asked for. Now and then quality is measured as the gate does it, as the
ratio of likelihoods, on calibration text that was held out: the weights that were best there are kept, those from before training among them,
and training ends early where it no longer helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genopt.errors import DataError
from genopt.models import products
from genopt.models.checkpoint import load_model
from genopt.techniques.base import Progress, TransformContext
from genopt.techniques.calibration import calibration_prefix, calibration_sequences, parts
from genopt.techniques.data_parallel import ALONE, PATIENCE_S, Team
from genopt.techniques.distillation_params import DistillParams
from genopt.techniques.training_state import BestWeights, Checkpoint, Standing

HELD_OUT = 4
"""Sequences that decide whether training helped, where there are four times as many to train on."""
BEGINNING, TOGETHER = 16, 8
"""Tokens of calibration text that the original continues, and how many of its sequences are written at once."""
CHECKS, PATIENCE = 4, 2
"""How often held-out text is read during training, and after how many times without a gain training ends."""
MOST_NATS = 100.0
"""A likelihood that is larger by more says no more."""
LIMIT_SHARE = 0.5
"""Most of the stage's time that training may take; loading and saving need the rest."""


class Texts(NamedTuple):
    """Token ids of sequences to train on, and of those that decide whether it helped."""

    training: list[list[int]]
    held_out: list[list[int]]


def texts_of(calibration: str | None, params: DistillParams) -> Texts:
    """Calibration text to distill on.

    Args:
        calibration: As in `TransformContext`.
        params: How long the sequences are, and how many can be of use.

    Raises:
        DataError: There are too few.
    """
    length = params.max_seq_length
    wanted = calibration_sequences(calibration, length * (4 * params.steps + HELD_OUT))
    prefix = calibration_prefix(calibration)
    pieces = [piece for ids in wanted for piece in parts(ids, prefix, length) if len(piece) >= len(prefix) + 2]
    held_out = min(HELD_OUT, max(1, len(pieces) // 5))
    if len(pieces) <= held_out:
        raise DataError("The calibration text is too short to distill on; give a longer one with --calib-data.")
    return Texts(pieces[:-held_out], pieces[-held_out:])


def taught(
    team: Team, folder: Path, texts: Texts, params: DistillParams, context: TransformContext, progress: Progress
) -> tuple[PreTrainedModel, PreTrainedModel]:  # fmt: skip
    """The original, and the model of a folder in float32 after it was trained as `distill` does."""
    torch.manual_seed(context.seed)
    progress = team.heard(progress)
    progress("loading the original and the model to train")
    teacher, student = load_model(Path(context.original)), load_model(folder, "float32")
    if params.written_sequences:
        progress(f"letting the original write {params.written_sequences} sequences")
        written = _written(teacher, texts.training, params)
        texts = texts._replace(training=[text for pair in zip_longest(written, texts.training) for text in pair if text])
    limit_s = limit_of(params, context)
    checkpoint = Checkpoint(context.checkpoint_folder, limit_s, spare_s=LIMIT_SHARE * context.time_limit_s - limit_s)
    distill(teacher, student, texts, params, limit_s, progress, team, checkpoint=checkpoint, seed=context.seed)
    return teacher, student


def limit_of(params: DistillParams, context: TransformContext) -> float:
    """Seconds that training may take; writing checkpoints comes on top only as far as both together stay within `LIMIT_SHARE`."""
    return min(params.time_s, LIMIT_SHARE * context.time_limit_s)


def patience_of(params: DistillParams, context: TransformContext) -> float:
    """Seconds that processes which train together wait for each other: the first may be writing a checkpoint, on a disk of any speed."""
    return PATIENCE_S + limit_of(params, context)


def distill(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    texts: Texts,
    params: DistillParams,
    limit_s: float,
    progress: Progress,
    team: Team = ALONE,
    *,
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Trains `student` in place and returns its quality on held-out text before and after.

    Quality is the likelihood per token as a share of the original's, exp(mean log p(student) - mean log p(teacher)).

    Args:
        teacher: The original.
        student: In float32; its weights are the best ones on held-out text, which are those from before if training did not help.
        texts: To train on and to judge by.
        params: How to train.
        limit_s: Seconds after which training ends; those before it was interrupted count.
        progress: Told how far it is.
        team: The processes that train copies of the student together, each on sequences of its own.
        checkpoint: From where an interrupted training goes on, to the same end; None keeps none.
        seed: Of what is random in the student, such as dropout.
    """
    progress, checkpoint = team.heard(progress), checkpoint or Checkpoint(None, limit_s)
    nearest = _nearest_layers(teacher, student, texts.held_out[0]) if params.hidden_weight and _width(teacher) == _width(student) else []
    optimizer = torch.optim.AdamW(student.parameters(), lr=params.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    best = BestWeights(student, _quality_of(teacher, student, texts.held_out, team))
    standing = checkpoint.read(student, optimizer, best)
    if standing is None:
        standing = Standing(before=best.measure())
    else:
        progress(f"going on after step {standing.steps} of {params.steps}, where it was interrupted")
    done, checks = standing.steps, standing.checks
    trained_s = _clock(checkpoint, standing.seconds)
    averaged = team.averaging(student)
    student.train()
    while done < params.steps and best.misses < PATIENCE and (elapsed := team.agreed(trained_s())) < limit_s:
        torch.manual_seed(seed + done)  # what goes on after an interruption draws what it would have drawn
        # While it is on time its clock decides nothing, so that the same work gives the same bytes.
        share = done / params.steps if elapsed / limit_s <= (done + 1) / params.steps else elapsed / limit_s
        rate = params.learning_rate * min(1.0, (done + 1) / 4) * (0.1 + 0.9 * (1 - share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = _loss(teacher, student, texts.training[(done * team.size + team.rank) % len(texts.training)], nearest, params.hidden_weight)
        loss.backward()
        averaged()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done += 1
        progress(f"step {done} of {params.steps}: loss {loss.item():.4f}")
        if share * CHECKS >= checks + 1:
            checks = int(share * CHECKS)
            progress(f"quality on held-out text {best.measure():.4f} of the original's at step {done}")
            if best.misses == PATIENCE:
                progress("training ends early: it no longer helps")
        if team.rank == 0:
            checkpoint.write_if_due(Standing(before=standing.before, steps=done, seconds=trained_s(), checks=checks), progress)
    student.eval()
    best.measure()
    best.restore()
    progress(f"quality on held-out text {standing.before:.4f} of the original's before and {best.quality:.4f} after {done} steps")
    return standing.before, best.quality


def _clock(checkpoint: Checkpoint, before_s: float) -> Callable[[], float]:
    """What tells the seconds of training from now on, with those before it was interrupted and without those of writing that do not count."""
    began = time.monotonic() - before_s
    return lambda: time.monotonic() - began - checkpoint.uncounted_s


def _quality_of(teacher: PreTrainedModel, student: PreTrainedModel, held_out: Sequence[list[int]], team: Team) -> Callable[[], float]:
    """What measures the student's likelihood per token of held-out text, as a share of the teacher's."""
    wanted = _log_likelihood(partial(_taught_by, teacher), held_out)

    def measure() -> float:
        trains = student.training
        student.eval()
        found = _log_likelihood(partial(_learned_by, student), held_out)
        student.train(trains)
        return team.agreed(math.exp(min(found - wanted, MOST_NATS)))

    return measure


@torch.no_grad()
def _log_likelihood(read: Callable[[list[int]], Any], pieces: Sequence[list[int]]) -> float:
    """Mean per token, in nats; the first of a piece is given."""
    found = 0.0
    for ids in pieces:
        logits = read(ids).logits[0, :-1].float()
        found -= torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], device=logits.device), reduction="sum").item()
    return found / sum(len(ids) - 1 for ids in pieces)


@torch.no_grad()
def _taught_by(teacher: PreTrainedModel, ids: list[int], hidden_states: bool = False) -> Any:
    """What the original says of a sequence, computed as it is run."""
    with products.by_fp32(products.are_slow_in(teacher)):
        return teacher(input_ids=torch.tensor([ids], device=teacher.device), use_cache=False, output_hidden_states=hidden_states)


def _learned_by(student: PreTrainedModel, ids: list[int], hidden_states: bool = False) -> Any:
    """What the model that is trained says of it, with products in 16 bits where these are faster."""
    with products.autocast(student.device):
        return student(input_ids=torch.tensor([ids], device=student.device), use_cache=False, output_hidden_states=hidden_states)


def _loss(teacher: PreTrainedModel, student: PreTrainedModel, ids: list[int], nearest: Sequence[int], hidden_weight: float) -> Tensor:
    """Mean KL divergence per token of one sequence, with the weighted distance of hidden states where layers are matched."""
    wanted, found = _taught_by(teacher, ids, bool(nearest)), _learned_by(student, ids, bool(nearest))
    ours, theirs = (torch.log_softmax(one.logits[0].float(), dim=-1) for one in (found, wanted))
    loss = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    if nearest:
        distances = [_distance(found.hidden_states[layer], wanted.hidden_states[place]) for layer, place in enumerate(nearest)]
        loss = loss + hidden_weight * torch.stack(distances).mean()
    return loss


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference as a share of the mean square of what is wanted."""
    return (found.float() - wanted.float()).square().mean() / wanted.float().square().mean()


@torch.no_grad()
def _nearest_layers(teacher: PreTrainedModel, student: PreTrainedModel, ids: list[int]) -> list[int]:
    """For the embedding and each layer of the student, which of the teacher's hidden states is nearest to its own; the last meets the last."""
    theirs, ours = _taught_by(teacher, ids, True).hidden_states, _learned_by(student, ids, True).hidden_states
    inner = [min(range(len(theirs) - 1), key=lambda place: float(_distance(state, theirs[place]))) for state in ours[:-1]]
    return [*inner, len(theirs) - 1]


def _width(model: PreTrainedModel) -> int:
    found: int = model.config.get_text_config(decoder=True).hidden_size
    return found


@torch.no_grad()
def _written(teacher: PreTrainedModel, beginnings: Sequence[Sequence[int]], params: DistillParams) -> list[list[int]]:
    """What the original writes after the beginnings of some calibration text, as it comes (temperature 1)."""
    length = min(BEGINNING, params.max_seq_length // 2)
    prompts = [list(piece[:length]) for piece in beginnings if len(piece) >= length]
    found: list[list[int]] = []
    writer: Any = teacher  # annotated as if it were a part of it
    for start in range(0, params.written_sequences, TOGETHER):
        count = min(TOGETHER, params.written_sequences - start)
        batch = torch.tensor([prompts[(start + place) % len(prompts)] for place in range(count)], device=teacher.device)
        written = writer.generate(
            batch, attention_mask=torch.ones_like(batch), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_length=params.max_seq_length, max_length=params.max_seq_length, pad_token_id=0,
        )  # fmt: skip
        found += written.tolist()
    return found
