"""The gate's verdicts, and that it errs no more often than it says."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.errors import SpecError
from genopt.plan import Quality
from genopt.quality.boundaries import nominal_errors
from genopt.quality.gate import SequentialGate

LogProbs = list[tuple[float, ...]]
BAR = 0.99
WINDOW = 8
SEQUENCES = (12, 17, 33, 65)
LOOKS = tuple(count * WINDOW for count in SEQUENCES)
GATE = SequentialGate(BAR, LOOKS)


def scores(count: int, *, ratio: float, spread: float, seed: int = 0, window: int = WINDOW) -> tuple[LogProbs, LogProbs]:
    """Scores of an original and of a candidate whose true ratio is `ratio`; `spread` is between sequences, in nats per token."""
    generator = np.random.default_rng(seed)
    reference = -generator.gamma(2.0, 1.3, (count, window))
    shift = math.log(ratio) + generator.normal(0, spread, (count, 1))
    candidate = reference + shift
    return [tuple(row) for row in reference.tolist()], [tuple(row) for row in candidate.tolist()]


def judge(reference: LogProbs, candidate: LogProbs, look: int = 0, *, gate: SequentialGate | None = None) -> Quality:
    return (gate or GATE).decide(reference, candidate, look)


def test_a_clearly_bad_candidate_is_rejected_at_the_first_look() -> None:
    found = judge(*scores(12, ratio=0.8, spread=0.02))
    assert found.verdict == "reject"
    assert found.ci_low < 0.8 < found.ci_high < BAR


def test_a_clearly_good_candidate_is_accepted_at_the_first_look() -> None:
    found = judge(*scores(12, ratio=0.9995, spread=0.0008))
    assert found.verdict == "accept"
    assert BAR <= found.ci_low <= found.ratio <= found.ci_high


def test_a_candidate_slightly_but_surely_below_the_bar_is_rejected() -> None:
    found = judge(*scores(12, ratio=0.975, spread=0.001))
    assert found.verdict == "reject"
    assert 0.97 < found.ci_high < BAR


def test_few_sequences_get_the_paired_t_interval() -> None:
    differences = np.array([-0.02, -0.01, 0.0, -0.03])
    found = judge([(-2.0, -2.0)] * 4, [(-2.0 + each, -2.0 + each) for each in differences.tolist()])
    reach = 3.18245 * differences.std(ddof=1) / math.sqrt(4)
    assert found.ci_low == pytest.approx(math.exp(-0.015 - reach), rel=1e-5)
    assert found.ci_high == pytest.approx(math.exp(-0.015 + reach), rel=1e-5)


def test_what_lies_near_the_bar_needs_more_tokens() -> None:
    reference, candidate = scores(65, ratio=0.995, spread=0.006)
    verdicts = [judge(reference[:count], candidate[:count], look).verdict for look, count in enumerate(SEQUENCES)]
    assert verdicts[0] == "inconclusive"
    assert verdicts[-1] == "accept"


def test_an_identical_candidate_is_accepted_with_a_ratio_of_one() -> None:
    reference, _ = scores(12, ratio=1.0, spread=0.0)
    found = judge(reference, reference)
    assert (found.verdict, found.ratio, found.ci_low, found.ci_high) == ("accept", 1.0, 1.0, 1.0)


def test_the_ratio_is_of_perplexities_over_all_tokens() -> None:
    found = judge([(-1.0, -2.0, -3.0), (-2.0,)], [(-1.1, -2.1, -3.1), (-2.5,)])
    assert found.metric == "likelihood_ratio"
    assert found.n == 4
    assert found.ratio == pytest.approx(math.exp(2.0 - 2.2))
    assert found.details["nll_reference"] == pytest.approx(2.0)
    assert found.details["nll_candidate"] == pytest.approx(2.2)
    assert found.details["delta_nll"] == pytest.approx(0.2)
    assert (found.details["look"], found.details["sequences"]) == (0, 2)


@given(seed=st.integers(0, 1000), ratio=st.floats(0.7, 1.04), count=st.integers(2, 30))
@settings(max_examples=30)
def test_the_interval_surrounds_the_ratio_and_is_repeatable(seed: int, ratio: float, count: int) -> None:
    reference, candidate = scores(count, ratio=ratio, spread=0.05, seed=seed)
    found = judge(reference, candidate)
    assert found.ci_low <= found.ratio <= found.ci_high
    assert judge(reference, candidate) == found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[:-1], "scores are missing"),
        (lambda rows: [*rows[:-1], rows[-1][:-1]], "scores are missing"),
        (lambda rows: [(math.nan, *rows[0][1:]), *rows[1:]], "not a finite number"),
        (lambda rows: [(-math.inf, *rows[0][1:]), *rows[1:]], "not a finite number"),
        (lambda rows: [tuple(value + 0.1 for value in row) for row in rows], "than a compressed model can honestly gain"),
    ],
)
def test_implausible_scores_are_anomalous_and_say_why(change: object, reason: str) -> None:
    reference, candidate = scores(12, ratio=1.0, spread=0.001)
    assert callable(change)
    found = judge(reference, change(candidate))
    assert found.verdict == "anomalous"
    assert reason in str(found.details["anomaly"])
    assert Quality.model_validate(json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False))) == found


def test_no_tokens_are_anomalous() -> None:
    assert judge([], []).verdict == "anomalous"


def test_one_sequence_decides_nothing() -> None:
    found = judge(*scores(1, ratio=0.5, spread=0.0))
    assert (found.verdict, found.ci_low) == ("inconclusive", 0.0)


@pytest.mark.parametrize("count", [2, 3])
def test_a_handful_of_sequences_decides_nothing(count: int) -> None:
    found = judge(*scores(count, ratio=0.5, spread=0.0))
    assert found.verdict == "inconclusive"
    assert "give more text" in str(found.details["reason"])


def test_few_sequences_reject_but_do_not_accept() -> None:
    assert judge(*scores(5, ratio=0.8, spread=0.001)).verdict == "reject"
    found = judge(*scores(5, ratio=1.0, spread=0.001))
    assert found.verdict == "inconclusive"
    assert "accepting takes" in str(found.details["reason"])


def test_early_looks_reject_only() -> None:
    gate = SequentialGate(BAR, LOOKS, accept_from=LOOKS[1])
    reference, candidate = scores(17, ratio=1.0, spread=0.001)
    assert judge(reference[:12], candidate[:12], 0, gate=gate).verdict == "inconclusive"
    assert judge(reference, candidate, 1, gate=gate).verdict == "accept"
    assert judge(*scores(12, ratio=0.8, spread=0.001), 0, gate=gate).verdict == "reject"


def test_the_only_look_may_accept_however_early() -> None:
    gate = SequentialGate(BAR, LOOKS[:1], accept_from=8_000)
    assert judge(*scores(12, ratio=1.0, spread=0.001), gate=gate).verdict == "accept"


@pytest.mark.parametrize(("ratio", "verdict"), [(0.8, "reject"), (0.9999, "accept"), (0.99, "inconclusive")])
def test_every_verdict_says_why(ratio: float, verdict: str) -> None:
    found = judge(*scores(12, ratio=ratio, spread=0.002))
    assert found.verdict == verdict
    assert f"bar of {BAR:g}" in str(found.details["reason"])


@pytest.mark.parametrize("looks", [(), (0, 10), (10, 10), (20, 10)])
def test_looks_must_increase(looks: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="increasing"):
        SequentialGate(BAR, looks)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("side", ["false_accept", "false_reject"])
def test_an_error_rate_is_a_probability_below_one_half(side: str, rate: float) -> None:
    with pytest.raises(SpecError, match="not a probability"):
        SequentialGate(BAR, LOOKS, **{side: rate})


@pytest.mark.parametrize("looks", [(100,), (8_192, 65_000), (2_048, 8_192, 16_384, 32_768, 65_000), tuple(range(1_000, 20_000, 1_000))])
def test_paths_of_a_normal_statistic_cross_a_boundary_as_often_as_allowed(looks: tuple[int, ...]) -> None:
    errors = nominal_errors(0.05, looks)
    assert all(0 < error <= 0.05 + 1e-6 for error in errors)
    steps = np.sqrt(np.diff([0, *looks]))
    paths = np.cumsum(np.random.default_rng(0).normal(size=(40_000, len(looks))) * steps, axis=1) / np.sqrt(looks)
    boundaries = [NormalDist().inv_cdf(1 - error) for error in errors]
    assert float((paths > boundaries).any(axis=1).mean()) == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize(("count", "trials", "least"), [(3, 200, 0.9), (5, 200, 0.9), (25, 100, 0.88)])
def test_the_reported_interval_covers_the_truth(count: int, trials: int, least: float) -> None:
    covered = 0
    for trial in range(trials):
        found = judge(*scores(count, ratio=0.97, spread=0.02, seed=trial))
        covered += found.ci_low <= 0.97 <= found.ci_high
    assert covered / trials >= least


@pytest.mark.parametrize("skewed", [False, True])
def test_a_candidate_at_the_bar_is_wrongly_decided_within_the_error_rates(skewed: bool) -> None:
    """2.5 % on each side, plus what the number of simulated runs may deviate from that; also where a few sequences take most of the damage."""
    gate, trials = SequentialGate(BAR, LOOKS, accept_from=LOOKS[1]), 120
    ends: list[str] = []
    for trial in range(trials):
        reference, candidate = scores(SEQUENCES[-1], ratio=BAR, spread=0.0 if skewed else 0.02, seed=10_000 + trial)
        if skewed:
            damage = np.random.default_rng(trial).gamma(4, 0.005, SEQUENCES[-1]) - 0.02  # a skewness of 1, as windows of real text have
            candidate = [tuple(value - extra for value in row) for row, extra in zip(candidate, damage.tolist(), strict=True)]
        verdicts = (judge(reference[:count], candidate[:count], look, gate=gate).verdict for look, count in enumerate(SEQUENCES))
        ends.append(next((verdict for verdict in verdicts if verdict != "inconclusive"), "inconclusive"))
    slack = 2.5 * math.sqrt(0.025 * 0.975 / trials)
    assert ends.count("accept") / trials <= 0.025 + slack
    assert ends.count("reject") / trials <= 0.025 + slack


def test_more_text_is_not_asked_for_where_it_would_hardly_decide() -> None:
    """Of candidates that a look gives up on, hardly any would have been decided by all text; and many near the bar are given up on."""
    given_up, decided, trials, look = 0, 0, 400, 2
    for trial in range(trials):
        reference, candidate = scores(SEQUENCES[-1], ratio=0.9905, spread=0.02, seed=20_000 + trial)
        early = judge(reference[: SEQUENCES[look]], candidate[: SEQUENCES[look]], look)
        if early.details.get("futile"):
            given_up += 1
            assert "would decide with a probability" in str(early.details["reason"])
            decided += judge(reference, candidate, len(SEQUENCES) - 1).verdict != "inconclusive"
    assert given_up > 0.1 * trials
    assert decided / given_up <= 0.1 + 2.5 * math.sqrt(0.1 * 0.9 / given_up)


def test_the_prospect_of_a_verdict_lies_where_most_runs_end() -> None:
    """The stated probability is the share of runs that the last look decides."""
    stated, decided = [], []
    for trial in range(300):
        ratio = 0.99 + 0.01 * np.random.default_rng(trial).uniform(-1, 1)
        reference, candidate = scores(SEQUENCES[-1], ratio=float(ratio), spread=0.02, seed=30_000 + trial)
        early = judge(reference[: SEQUENCES[1]], candidate[: SEQUENCES[1]], 1)
        if early.verdict == "inconclusive":
            stated.append(float(str(early.details["prospect"])))
            decided.append(judge(reference, candidate, len(SEQUENCES) - 1).verdict != "inconclusive")
    assert float(np.mean(decided)) == pytest.approx(float(np.mean(stated)), abs=0.1)


def test_no_verdict_is_given_up_on_at_the_last_look_or_without_a_bar() -> None:
    assert "prospect" not in judge(*scores(SEQUENCES[-1], ratio=BAR, spread=0.02), len(SEQUENCES) - 1).details
    off = SequentialGate(0.0, LOOKS, accept_from=LOOKS[1])
    assert judge(*scores(SEQUENCES[0], ratio=0.5, spread=0.02), gate=off).details["prospect"] == 1
