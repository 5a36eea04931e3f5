"""report.md: the same content as the page, as Markdown that GitHub renders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from genopt.plan import Candidate
from genopt.report import earlier, evidence, method, predicted, profiled, sensitivity, wording
from genopt.report.by_load import by_load
from genopt.report.model import Profile, Report


def render(report: Report, spec: str) -> str:
    """The Markdown; what comes from the run cannot break tables or bring markup in.

    Args:
        report: What it shows.
        spec: Text of the run's spec.yaml.
    """
    parts = [f"# {escape(wording.verdict(report))}", escape(report.decision)]
    if report.interrupted:
        parts.append(f"> **This run was interrupted**: {escape(report.ended)}. What follows is valid, and not all there is to find.")
    parts += [*_next_steps(report), *_deployment(report), *_candidates(report), *_by_load(report), *_human(report), *_bottlenecks(report)]
    parts += [*_sensitivity(report), *_predicted(report), *_method(report), *_reproduce(report, spec)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text as Markdown shows it literally, on one line; code between backticks stays code."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(piece.replace("|", r"\|") if re.fullmatch(r"`[^`]*`", piece) else re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", piece) for piece in pieces)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    rule = ["---:" if column in right else "---" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))


def _code(text: str, language: str = "") -> str:
    """A fenced block with a fence that the text does not contain."""
    fence = max(["```", *(run + "`" for run in re.findall(r"`{3,}", text))], key=len)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _with_interval(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _next_steps(report: Report) -> list[str]:
    if not report.next_steps:
        return []
    return ["## Next steps", "\n".join(f"{number}. {escape(step)}" for number, step in enumerate(report.next_steps, start=1))]


def _deployment(report: Report) -> list[str]:
    command = wording.curl(report)
    if report.deployment is None or command is None:
        return []
    variant = report.deployment.variant or "A variant of this run"
    return ["## Deployment", f"{escape(variant)} is served at {escape(report.deployment.url)}.", _code(command, "sh")]


def _candidates(report: Report) -> list[str]:
    if not report.candidates:
        return []
    columns = method.columns(report)
    headings = ["Candidate", "Status", "vs original", "vs baseline", "Quality", *(heading for heading, _ in columns), "Size", "Bits", "Reason"]
    rows = [_row(candidate, report, [name for _, name in columns]) for candidate in method.ordered(report)]
    front = ", ".join(report.pareto) or "nothing"
    return [
        "## Candidates", _table(headings, rows, range(2, len(headings) - 1)),
        f"In parentheses: 95% intervals. Bits: effective bits per parameter, from the file headers. "
        f"Unbeaten in speed, throughput, quality and memory together: {escape(front)}.", *_earlier(report), *_worst(report),
    ]  # fmt: skip


def _earlier(report: Report) -> list[str]:
    rows = [[escape(cell) for cell in row] for row in earlier.rows(report)]
    return ["### From earlier runs", escape(earlier.SENTENCE), _table(earlier.HEADINGS, rows)] if rows else []


def _worst(report: Report) -> list[str]:
    """Where each candidate's expectations differ most from the original's."""
    rows = [
        [escape(candidate.name), f"{item.kl:.4f}", escape(item.context), escape("".join(item.original)), escape("".join(item.candidate))]
        for candidate in method.ordered(report) for item in evidence.worst(candidate)
    ]  # fmt: skip
    if not rows:
        return []
    headings = ["Candidate", "KL", "After", "The original would write", "The candidate would write"]
    return ["### Where they differ most", "Greedy choices at each place of the given text; KL in nats per token.", _table(headings, rows, [1])]


def _by_load(report: Report) -> list[str]:
    load = by_load(report)
    if not load.rows:
        return []
    signs = {"best": "★ **{}**", "tied": "≈ {}", "": "{}"}
    rows = [[escape(row.name), row.kind, *(signs[cell.mark].format(cell.text) for cell in row.cells)] for row in load.rows]
    return [
        "## Throughput by load", _table(["Candidate", "Status", *load.headings], rows, range(2, 2 + len(load.headings))),
        f"{escape(load.remark)} ★ marks the fastest that may be deployed, ≈ what its 95% interval cannot tell from it.",
    ]  # fmt: skip


def _row(candidate: Candidate, report: Report, metrics: Sequence[str]) -> list[str]:
    kind = method.kind(candidate, report).replace("winner", "**winner**")
    original, baseline = candidate.speedup.get("vs_original"), candidate.speedup.get("vs_baseline")
    quality = _with_interval(wording.quality_percent(candidate.quality.ratio) if candidate.quality else wording.NONE,
                             wording.quality_interval(candidate.quality))  # fmt: skip
    return [
        escape(earlier.name(candidate)), kind, _with_interval(wording.ratio(original), wording.ratio_interval(original)),
        _with_interval(wording.ratio(baseline), wording.ratio_interval(baseline)), quality,
        *(wording.metric(candidate.metrics.get(name)) for name in metrics),
        wording.size(candidate.artifact.bytes) if candidate.artifact else wording.NONE, method.bits(candidate), escape(candidate.reason),
    ]  # fmt: skip


def _human(report: Report) -> list[str]:
    if not report.human:
        return []
    parts = ["## What people preferred", escape(method.human())]
    for result in report.human:
        facts = [
            (result.a, result.votes["a"], result.prompts_a), (result.b, result.votes["b"], result.prompts_b), ("tie", result.votes["tie"], None),
            ("both bad", result.votes["bad"], None),
        ]  # fmt: skip
        counts = [[escape(name), str(votes), str(prompts) if prompts is not None else wording.NONE] for name, votes, prompts in facts]
        rows = [[escape(item.prompt), escape(wording.preferred(result, item))] for item in result.details]
        parts += [
            f"### {escape(result.a)} against {escape(result.b)}", escape(result.decision), *map(escape, result.notes),
            _table(["Said", "Votes", "Prompts"], counts, (1, 2)), _table(["Prompt", "Preferred"], rows),
        ]  # fmt: skip
    return parts


def _bottlenecks(report: Report) -> list[str]:
    if not report.bottlenecks:
        return []
    rows = [[escape(item.name), wording.percent(item.share, 0), item.bound, escape(item.detail), escape(item.advice)] for item in report.bottlenecks]
    table = _table(["What", "Share", "Bound by", "Measured", "Advice"], rows, [1])
    return ["## Where the original's time goes", table, *(_profile(report.profile) if report.profile else [])]


def _profile(profile: Profile) -> list[str]:
    found = [escape(profile.advice)] if profile.advice else []
    tables = [profiled.phases(profile.phases), profiled.families(profile.phases)] if profile.phases else []
    tables += [profiled.operators(phase) for phase in profile.phases if phase.operators]
    if profile.graph_breaks:
        tables += [profiled.break_places(profile.graph_breaks)] if profile.graph_breaks.breaks else []
        found.append(escape(profiled.breaks(profile.graph_breaks)))
    if profile.traces:
        paths = ", ".join(f"{escape(name)} `{path}`" for name, path in profile.traces.items())
        found.append(f"Traces for Perfetto or chrome://tracing, in the run folder: {paths}.")
    for table in tables:
        found += [f"### {escape(table.title)}", _table(table.headings, [[escape(cell) for cell in row] for row in table.rows], table.numbers)]
    limits = "; ".join(f"{what} {value}" for what, value in profiled.ceilings(profile.ceilings))
    origin = f" ({profile.ceilings_origin})" if profile.ceilings_origin else ""
    return [*found, escape(f"Limits of this hardware{origin}: {limits}.")] if limits else found


def _sensitivity(report: Report) -> list[str]:
    said, tables = sensitivity.sentence(report), sensitivity.tables(report)
    if not said:
        return []
    found = ["## Which parts bear fewer bits", escape(said)]
    for table in tables:
        found += [f"### {escape(table.title)}", _table(table.headings, [[escape(cell) for cell in row] for row in table.rows], table.numbers)]
    return found


def _predicted(report: Report) -> list[str]:
    found = predicted.rows(report)
    if not found:
        return []
    headings = ["Candidate", "Predicted", "95% interval", "Measured", "Error"]
    table = _table(headings, [[escape(name), *rest] for name, *rest in found], range(1, 5))
    return ["## Predicted and measured", escape(predicted.sentence(report)), table]


def _method(report: Report) -> list[str]:
    phases = ", ".join(f"{name} {wording.duration(seconds)}" for name, seconds in report.budget.phases.items())
    time = f"{wording.duration(report.budget.spent_s)} of a budget of {wording.duration(report.budget.total_s)}"
    return [
        "## How it was measured", f"**Speed.** {escape(method.speed(report))}", f"**Noise.** {escape(method.noise(report))}",
        f"**Quality.** {escape(method.quality(report))}", f"**Time.** {time}{f': {escape(phases)}' if phases else ''}.",
    ]  # fmt: skip


def _reproduce(report: Report, spec: str) -> list[str]:
    model = report.model
    facts = {
        "Model": model.id, "Architecture": model.architecture, "Parameters": wording.count(model.parameters) if model.parameters else "",
        "Digest": model.digest, "Revision": model.revision or "", "Weights": model.note, "Seed": str(report.seed), "Run folder": report.run,
        "Journal up to": report.created, "Machine": wording.machine(report),
    }  # fmt: skip
    commands = "\n".join(f"# {does}\n{command}" for does, command in wording.commands(report).items())
    machine = json.dumps({"hardware": report.hardware, "environment": report.environment}, indent=2, ensure_ascii=False)
    return [
        "## How to reproduce it", _table(["What", "Value"], [[name, escape(value)] for name, value in facts.items() if value]),
        _code(commands, "sh"), "The run's `spec.yaml`:", _code(spec, "yaml"), "Hardware and environment:", _code(machine, "json"),
    ]  # fmt: skip
