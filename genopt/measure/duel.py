"""How two sessions are timed against each other, whatever they generate: in turns, until their ratio is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from genopt.measure.repeats import Repeats, Row
from genopt.measure.statistics import half_width as relative_half_width
from genopt.plan import Metric, Ratio

ROLES: tuple[str, ...] = ("candidate", "baseline")
CANDIDATE = ROLES[:1]
BATCH_REPEATS, LEAST_OF_DECIDING = 3, 3
"""Batches of each number of streams that count, while the time suffices, and in any case where they decide: two say little about their spread. One
more goes before them: the first of a size is slower, on GPUs that of an engine without graphs took up to twice as long, as its kernels and memory are
found."""

Clock = Callable[[], float]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Comparison:
    """What an interleaved measurement found.

    Attributes:
        candidate_metrics: By name, of the task's own.
        baseline_metrics: Likewise; without throughputs where only the candidate's batches were timed.
        ratio: Baseline's time per unit of work over the candidate's: above 1 the candidate is faster.
        decided: Whether the ratio's interval became as narrow as was asked for.
        discarded: Disturbed rounds that were measured again.
        contended: Whether disturbed rounds had to be kept.
        raw: One flat row per request, all with the same keys.
    """

    candidate_metrics: dict[str, Metric]
    baseline_metrics: dict[str, Metric]
    ratio: Ratio
    decided: bool
    discarded: int
    contended: bool
    raw: tuple[Row, ...]


def order(index: int, roles: tuple[str, ...] = ROLES) -> tuple[str, ...]:
    """The roles in the order of a round: AB, BA, AB, ..., so that drift of the machine hits both alike."""
    return roles[::-1] if index % 2 else roles


def rounds_until_known(
    repeats: Repeats,
    measure: Callable[[int], Found],
    take: Callable[[Found], None],
    ratio: Callable[[], Ratio],
    *,
    half_width: float,
    least: int,
    most: int,
    deadline: float,
    clock: Clock,
) -> tuple[Ratio, bool]:
    """Rounds until the ratio is known well enough; returns it, and whether it is.

    The stop looks at the interval's width only, never at the ratio, so that it favours neither side.

    Args:
        repeats: Watches each round.
        measure: Runs the round of a number.
        take: Told what an undisturbed round found.
        ratio: The ratio over all rounds so far.
        half_width: Relative half-width at which it is known.
        least: Rounds that are measured in any case: fewer may agree by chance and look decided.
        most: Upper bound of rounds.
        deadline: When no further round is started, on `clock`.
        clock: Monotonic clock in seconds.
    """
    done = 0
    while True:
        found = repeats.measured(partial(measure, done))
        if found is not None:
            take(found)
            done += 1
        if done < least:
            continue
        value = ratio()
        decided = relative_half_width(value) <= half_width
        if decided or done >= most or clock() >= deadline:
            return value, decided


class Duel(Protocol):
    """Two sessions against each other; what their requests are is up to their modality."""

    repeats: Repeats
    decided: bool

    def warm_up(self) -> None:
        """Lets both sides do everything once that is timed later."""

    def alone(self, *, seed: int, half_width: float, max_rounds: int, deadline: float, clock: Clock) -> Ratio:
        """Single requests until the ratio is known."""

    def batch(self, count: int, roles: tuple[str, ...], *, least: int, deadline: float, clock: Clock) -> None:
        """Batches of `count` requests on the sides that are named, `least` of them in any case."""

    def metrics(self, role: str, *, seed: int) -> dict[str, Metric]:
        """The metrics of one side."""


def settle(
    duel: Duel, concurrency: Sequence[int], *, batched: tuple[str, ...], batches_decide: bool, seed: int, half_width: float, max_rounds: int,
    time_cap_s: float, clock: Clock,
) -> Comparison:  # fmt: skip
    """Warm-up, single requests until the ratio is known, then batches.

    Args:
        duel: The two sides.
        concurrency: Sizes of batches; 1 is what single requests tell.
        batched: Sides whose batches are timed.
        batches_decide: Whether the largest batches decide who wins: then half of the time is theirs, and there are several of them.
        seed: Seed of the intervals' resampling.
        half_width: Enough rounds are done when the ratio's relative half-width is at most this.
        max_rounds: Upper bound of rounds.
        time_cap_s: Seconds after which nothing optional is started any more.
        clock: Monotonic clock in seconds.
    """
    deadline, largest = clock() + time_cap_s, max(concurrency)
    deciding = batches_decide and largest > 1
    duel.warm_up()
    left = deadline - clock()
    ratio = duel.alone(
        seed=seed, half_width=half_width, max_rounds=max_rounds, deadline=deadline - (left / 2 if deciding else 0.0), clock=clock
    )  # fmt: skip
    for count in concurrency:
        if count > 1:
            duel.batch(count, batched, least=_least(batched, deciding and count == largest), deadline=deadline, clock=clock)
    repeats = duel.repeats
    return Comparison(
        candidate_metrics=duel.metrics("candidate", seed=seed), baseline_metrics=duel.metrics("baseline", seed=seed), ratio=ratio,
        decided=duel.decided, discarded=repeats.discarded, contended=repeats.kept_disturbed, raw=tuple(repeats.rows),
    )  # fmt: skip


def _least(batched: tuple[str, ...], decides: bool) -> int:
    """Batches in any case, that which warms up included; a candidate without time for another one is told by its first, which flatters nobody."""
    return 1 + (LEAST_OF_DECIDING if decides else int("baseline" in batched))


def repeated_batches(
    repeats: Repeats, measure: Callable[[int], Found], take: Callable[[Found], None], *, least: int, deadline: float, clock: Clock
) -> bool:  # fmt: skip
    """A few batches of each session, in alternating order, while the time suffices.

    Args:
        repeats: Watches each.
        measure: Runs the batches of a number.
        take: Told what undisturbed ones found; the first of them only where there is no other.
        least: Batches in any case, the first included.
        deadline: When they should be done, on `clock`.
        clock: Monotonic clock in seconds.

    Returns:
        Whether those that `take` was told of had one before them.
    """
    batches: list[Found] = []
    first: list[Row] = []
    while len(batches) <= BATCH_REPEATS:
        started, known = clock(), len(repeats.rows)
        found = repeats.measured(partial(measure, len(batches)))
        if found is not None:
            batches.append(found)
            first = first or repeats.rows[known:]
        if len(batches) >= least and 2 * clock() - started > deadline:
            break
    warm = len(batches) > 1
    if warm:
        for row in first:
            row["phase"] = f"{row['phase']}, warm-up"
    for found in batches[warm:]:
        take(found)
    return warm
