"""How the numbers of a report came about, in sentences."""

from __future__ import annotations

from genopt.plan import RATES, Candidate
from genopt.quality.preference import FEWEST, SIGNIFICANT, TOLERATED
from genopt.report import wording
from genopt.report.model import REFERENCES, Report
from genopt.search.selection import against_baseline

_COLUMNS = (("Decode", "decode_tok_s"), ("TTFT", "ttft_ms"), ("Latency", "latency_ms"), ("Step", "step_ms"))
_RESOURCES = (("Peak memory", "peak_memory_bytes"), ("Load", "load_s"))
_STATUSES = ("accepted", "inconclusive", "rejected", "failed", "infeasible", "skipped")


def ordered(report: Report) -> list[Candidate]:
    """The references, the winner, then the others by how they ended and how good they are at what the winner is chosen by."""
    references = [candidate for candidate in report.candidates if candidate.name in REFERENCES]

    def rank(candidate: Candidate) -> tuple[bool, int, float]:
        score = against_baseline(candidate, references[-1], report.objective) if references else None
        return candidate.name != report.winner, _STATUSES.index(candidate.status), -score.value if score else 0.0

    return [*references, *sorted(report.tried, key=rank)]


def kind(candidate: Candidate, report: Report) -> str:
    """How a candidate is shown: `winner`, `reference`, or by its status."""
    return "winner" if candidate.name == report.winner else "reference" if candidate.name in REFERENCES else candidate.status


def columns(report: Report) -> list[tuple[str, str]]:
    """Headings and metric names of the table of candidates: what was measured of this modality, throughput at the most streams."""
    names = {name for candidate in report.candidates for name in candidate.metrics}
    rates = sorted((name for name in names if name.startswith(RATES)), key=_streams)
    throughput = [(f"Throughput @{_streams(rates[-1])}", rates[-1])] if rates else []
    return [column for column in (*_COLUMNS, *throughput, *_RESOURCES) if column[1] in names]


def _streams(name: str) -> int:
    return int(name.partition("@")[2])


def speed(report: Report) -> str:
    """What a speedup is."""
    text = report.model.modality == "text"
    unit = "time per output token of a single stream, that is (end-to-end latency - TTFT) / (tokens - 1)" if text else "time from request to image"
    return (
        "Every candidate was timed in turns with the baseline in the same run, so that drift of the machine hits both alike. A speedup is the "
        f"baseline's median {unit}, over the candidate's, with a bootstrap 95% interval; above 1 is faster. The interval is that of one opening: "
        "the next one may differ by more. Speed against the original is that "
        "ratio times the baseline's own. Throughput of several at once is a candidate's at its own turn, and the baseline's when it was timed "
        "beside the original."
    )


def noise(report: Report) -> str:
    """What the A/A pair showed."""
    if report.aa is None:
        return "The baseline was not timed against itself."
    low, high = report.aa.ci_low, report.aa.ci_high
    found = f"The baseline timed against itself (A/A) gave {report.aa.value:.3f} with a 95% interval of {low:.3f}–{high:.3f}"
    if low <= 1 <= high:
        return f"{found}: it covers 1, as it must; differences smaller than this are noise."
    return f"{found}: it misses 1, so the machine was not quiet, and small differences in this report may be noise."


def quality(report: Report) -> str:
    """What a quality ratio is, and on what data."""
    bar = wording.percent(report.quality_bar)
    if not report.quality_bar:
        return "Nothing was asked of quality (`--quality off`): what stands under it was read off little text in passing, and decided ties alone."
    if report.model.modality == "image":
        return _image_quality(report, bar)
    text = (
        "The quality ratio is exp(-(mean NLL of the candidate - mean NLL of the original)) over the same evaluation text, that is the original's "
        f"perplexity divided by the candidate's, with a paired bootstrap 95% interval. Accepted: the lower bound holds {bar}. Rejected: the upper "
        "bound misses it. In between, more text is read until it is decided, the text ends, or the time is up; these looks share one error rate "
        "(alpha spending), so that looking again does not invite luck. Who passes must also write like the original: as long, without more "
        "repetition, ending where it ends, in valid UTF-8, from prompts that are the same token by token."
    )
    facts = report.evaluation
    if "source" in facts and "available_tokens" in facts:
        text += f" Evaluation text: {facts['source']}, {facts['available_tokens']} tokens{_digest(facts.get('digest'))}."
    if "calibration_source" in facts:
        text += f" Calibration text, which shares nothing with it: {facts['calibration_source']}{_digest(facts.get('calibration_digest'))}."
    return text


def _image_quality(report: Report, bar: str) -> str:
    """The same for images."""
    facts = report.evaluation
    scorer = facts.get("scorer")
    if scorer:
        text = (
            f"The quality ratio is the mean {scorer} of a candidate's images over that of the original's, on the same prompts and seeds, with a "
            f"paired bootstrap 95% interval. Accepted: the lower bound holds {bar}. Rejected: the upper bound misses it at one of the looks, which "
            "share one error rate; only the last look accepts."
        )
    else:
        text = (
            "No scorer was given, so quality is fidelity: the mean structural similarity (SSIM) to the original's images of the same prompts and "
            f"seeds, whose 95% lower bound has to hold {bar}. What makes other images stays undecided, since nothing says whether they are as good."
        )
    text += " How far images differ (SSIM, PSNR, a perceptual distance) is difference, not damage: it tells the same images from different ones."
    if "source" in facts and "available_images" in facts:
        text += f" Prompts: {facts['source']}, {facts['available_images']} images of {facts['prompts']} prompts{_digest(facts.get('digest'))}."
    return text


def human() -> str:
    """How people were asked, and when they count as confirming the gate."""
    return (
        "People saw two anonymous answers to the same prompt, on sides that changed at random, and the names only after their last vote. The unit "
        "is the prompt: what more of its raters preferred. The sign test is exact and two-sided and leaves even prompts out; the share has Clopper "
        "and Pearson's exact interval; the net preference, in percentage points, counts even prompts too and has Tango's score interval. A "
        f"preference is real at a p-value below {SIGNIFICANT:g}; people confirm that a candidate is as good where a net loss of "
        f"{100 * TOLERATED:.0f} points is ruled out on at least {FEWEST} prompts."
    )


def _digest(value: object) -> str:
    return f" (sha256 {str(value)[:16]}…)" if value else ""


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """The winner at a glance: heading, value and remark; empty without a winner."""
    winner = report.winning
    if winner is None:
        return []
    original, many = report.candidates[0], wording.deciding_streams(report)
    found = []
    if times := wording.throughput_gain(report, winner):
        remark = f"original: {wording.metric(original.rates.get(many))}"
        found.append((f"the throughput of the original, {many} at once", f"{times:.2f}×", remark))
    found += [
        (f"the speed of the {against}", wording.ratio(ratio), f"95%: {wording.ratio_interval(ratio)}")
        for against in ("original", "baseline") if (ratio := winner.speedup.get(f"vs_{against}"))
    ]  # fmt: skip
    if winner.quality:
        interval = f"95%: {wording.quality_interval(winner.quality)}"
        found.append(("of the original's quality", wording.quality_percent(winner.quality.ratio), interval))
    if winner.artifact and original.artifact:
        found.append(("on disk", wording.size(winner.artifact.bytes), f"original: {wording.size(original.artifact.bytes)}"))
    memory = "peak_memory_bytes"
    if memory in winner.metrics and memory in original.metrics:
        found.append(("peak memory", wording.metric(winner.metrics[memory]), f"original: {wording.metric(original.metrics[memory])}"))
    return found


def bits(candidate: Candidate) -> str:
    """Effective bits per parameter, from the file headers."""
    found = candidate.artifact.effective_bits if candidate.artifact else None
    return f"{found:.1f}" if found is not None else wording.NONE
