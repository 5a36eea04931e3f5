"""Numbers and sentences as all forms of the report print them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from genopt import catalog
from genopt.plan import Candidate, JsonValue, Metric, Quality, Ratio
from genopt.quality.preference import HumanResult, PromptVotes
from genopt.report.model import Report
from genopt.spec import BY_THROUGHPUT

NONE = "–"
"""What stands where nothing was measured."""

_BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_COUNTS = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))


def _scaled(value: float, scales: tuple[tuple[str, float], ...], plain: str, separator: str) -> str:
    for unit, scale in scales:
        if value >= scale:
            return f"{value / scale:.3g}{separator}{unit}" if value / scale < 999.5 else f"{value / scale:.0f}{separator}{unit}"
    return f"{value:.0f}{plain}"


def size(value: float) -> str:
    """Bytes in decimal units: `134 MB`."""
    return _scaled(value, _BYTES, " B", " ")


def count(value: float) -> str:
    """A large count: `135M`."""
    return _scaled(value, _COUNTS, "", "")


def duration(seconds: float) -> str:
    """Wall time: `0.40 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(value: float, digits: int = 1) -> str:
    """A share: `99.6%`."""
    return f"{100 * value:.{digits}f}%"


def quality_percent(value: float) -> str:
    """A quality ratio, rounded down: a bar that was missed must not look held. Beyond tenfold only that is said."""
    if value >= 10:
        return ">1000%"
    return f"{math.floor(1e4 * value + 1e-6) / 100:.2f}%"


def ratio(value: Ratio | None) -> str:
    """A ratio: `4.12×`."""
    return f"{value.value:.2f}×" if value else NONE


def ratio_interval(value: Ratio | None) -> str:
    """The 95% interval of a ratio; an empty text where there is none, or where it is 1 by definition."""
    return f"{value.ci_low:.2f}–{value.ci_high:.2f}" if value and value.ci_low < value.ci_high else ""


def quality_interval(value: Quality | None) -> str:
    """The 95% interval of a quality ratio, or an empty text."""
    return f"{quality_percent(value.ci_low).removesuffix('%')}–{quality_percent(value.ci_high)}" if value else ""


def metric(value: Metric | None) -> str:
    """A measured value in its unit."""
    if value is None:
        return NONE
    if value.unit == "bytes":
        return size(value.value)
    if value.unit == "s":
        return duration(value.value)
    if 0 < value.value < 0.1:  # a large pipeline on a processor makes thousandths of an image a second
        return f"{value.value:.2g} {value.unit}"
    digits = 0 if value.value >= 100 else 1 if value.value >= 10 else 2
    return f"{value.value:.{digits}f} {value.unit}"


def quantile(value: Metric, number: float | None) -> str:
    """A percentile or bound of a metric, printed like its value."""
    return metric(value.model_copy(update={"value": number})) if number is not None else NONE


def metric_interval(value: Metric) -> str:
    """The 95% interval of a metric."""
    return f"{quantile(value, value.ci_low)} – {quantile(value, value.ci_high)}" if value.ci_low is not None else NONE


def steps(candidate: Candidate) -> str:
    """The transforms with their parameters, in order: `onnx_genai(precision=int8)`."""
    return " → ".join(_with_settings(step.technique, step.params) for step in candidate.steps) or "none"


def engine(candidate: Candidate) -> str:
    """The engine with its options."""
    return _with_settings(candidate.engine, candidate.options)


def _with_settings(what: str, values: dict[str, JsonValue]) -> str:
    """A thing with the settings that it was given; None leaves the choice to it."""
    given = {name: "+".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items() if value is not None}
    return f"{what}({', '.join(f'{name}={value}' for name, value in given.items())})" if given else what


def moment(report: Report) -> str:
    """When the run ended: `2026-01-31 12:30 UTC`."""
    return f"{report.created[:16].replace('T', ' ')} UTC"


def machine(report: Report) -> str:
    """The hardware in a few words; empty where the run did not record it."""
    facts = report.hardware
    parts = [str(facts["cpu"])] if facts.get("cpu") else []
    parts += [f"{facts['cores']} cores"] if facts.get("cores") else []
    parts += [size(float(facts["memory_bytes"]))] if facts.get("memory_bytes") else []
    return ", ".join(parts)


def verdict(report: Report) -> str:
    """The run's result in one sentence; why it is so stands in the report's `decision`."""
    winner = report.winning
    if not report.candidates:
        return f"The run on {report.model.id} ended before there was a baseline, so nothing can be compared."
    if winner is None:
        return "The baseline is kept."
    parts = [winner.name]
    if claims := list(_claims(report, winner)):
        parts.append(" and ".join(claims))
    if not report.quality_bar:
        parts.append("with a quality that was not judged")
    elif winner.quality:
        parts.append(f"at {quality_percent(winner.quality.ratio)} of its quality (lower bound {quality_percent(winner.quality.ci_low)})")
    return " ".join(parts) + "."


def deciding_streams(report: Report) -> int:
    """How many at once the winner is chosen by; 1 where throughput does not count."""
    return max((count for one in report.candidates for count in one.rates), default=1) if report.objective in BY_THROUGHPUT else 1


def throughput_gain(report: Report, winner: Candidate) -> float | None:
    """How many times as much as the original a winner by throughput makes in a second; None where throughput does not count or was not measured."""
    many = deciding_streams(report)
    mine, theirs = winner.rates.get(many), report.candidates[0].rates.get(many)
    return mine.value / theirs.value if many > 1 and mine and theirs and theirs.value > 0 else None


def _claims(report: Report, winner: Candidate) -> Iterator[str]:
    """What a winner is better at than the original, first what it was chosen by."""
    if times := throughput_gain(report, winner):
        of = {"text": "tokens", "image": "images"}.get(report.model.modality, "results")
        yield f"makes {times:.2f}× as many {of} a second as the original with {deciding_streams(report)} at once"
    if speed := winner.speedup.get("vs_original"):
        does = {"text": "decodes", "image": "makes images"}.get(report.model.modality, "runs")
        yield f"{does} {speed.value:.2f}× as fast as the original (95% interval {speed.ci_low:.2f}–{speed.ci_high:.2f})"


def commands(report: Report) -> dict[str, str]:
    """The commands that a reader is most likely to want next, by what they do."""
    run = shlex.quote(report.run)
    found = {"Repeat this run": f"genopt optimize --config {run}/spec.yaml --out NEW_FOLDER", "Write these reports again": f"genopt report {run}"}
    if report.interrupted:
        found["Continue this run"] = f"genopt resume {run}"
    if report.winner:
        found["Serve the winner"] = f"genopt deploy {run}"
        found["Or with Ray Serve alone"] = f"serve deploy {run}/serve.yaml"
    return found


def preferred(result: HumanResult, item: PromptVotes) -> str:
    """What people said about one prompt: `original`, or with several raters `2 × original, 1 × tie`."""
    if item.preferred is None:
        return NONE
    names = ((item.a, result.a), (item.b, result.b), (item.tie, "tie"), (item.bad, "both bad"))
    said = [(number, name) for number, name in names if number]
    return said[0][1] if len(result.raters) == 1 else ", ".join(f"{number}\u00a0×\u00a0{name}" for number, name in said)


def curl(report: Report) -> str | None:
    """A request to the deployment that works as it stands, but for a key where one is needed; None while nothing is served."""
    modality = report.model.modality or "text"
    if report.deployment is None or modality not in catalog.names("apis"):
        return None
    url = report.deployment.url.rstrip("/").removesuffix("/v1")
    line: str = catalog.load("apis", modality).curl_line(url, Path(report.model.id).name, str(report.evaluation.get("example", "")))
    return f"{line} -H 'Authorization: Bearer KEY'" if report.deployment.needs_key else line
