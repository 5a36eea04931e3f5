"""The arguments and options that verbs share, and the spec that they make."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from genopt.spec import RunSpec

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
PROMPTS_HELP = "Your own prompts: .txt with one a line, .jsonl with `prompt` or chat `messages`, or .parquet with such a column."


class Progress(StrEnum):
    """How a run says on stderr what it does."""

    auto = "auto"
    lines = "lines"
    json = "json"


Model = Annotated[
    str | None, typer.Argument(help="Hugging Face id, folder, .gguf file or built-in name (smollm2-135m, digits-diffusion).", show_default=False)
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with keys as in a run's spec.yaml; flags on the command line win.")]
TaskName = Annotated[str | None, typer.Option(help="Task; inferred from the model unless given.")]
BudgetTime = Annotated[str | None, typer.Option(help="Wall-clock time from start to report, such as 10m.  [default: 60m]")]
Quality = Annotated[str | None, typer.Option(help="Share of the original's quality that must be held; off holds none.  [default: 99%]")]
ObjectiveName = Annotated[str | None, typer.Option(help="latency, throughput, memory or balanced.  [default: latency]")]
Slo = Annotated[str | None, typer.Option(help="Latency limits, such as ttft_p99=300ms,tpot_p99=30ms; with --arrivals, queueing included.")]
EvalData = Annotated[str | None, typer.Option(help="Text (txt, jsonl, parquet) or questions (jsonl) to judge on.  [default: Python's help texts]")]
EvalTask = Annotated[list[str] | None, typer.Option(help="Task of lm-evaluation-harness for finalists: a name or a YAML file; repeatable.")]
EvalLimit = Annotated[int | None, typer.Option(help="Most items of each task.  [default: all]")]
CalibData = Annotated[str | None, typer.Option(help="Text to calibrate on; must differ from the evaluation text.")]
Include = Annotated[list[str] | None, typer.Option(help="Keep candidates whose name, engine or technique contains this; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Drop candidates whose name, engine or technique contains this; repeatable.")]
Concurrency = Annotated[str | None, typer.Option(help="Streams at which throughput is measured, such as 1,8,32.  [default: 1,4]")]
Prompts = Annotated[str | None, typer.Option(help=f"{PROMPTS_HELP}  [default: pieces of the calibration text]")]
Scorer = Annotated[str | None, typer.Option(help="Scores images: a folder with a CLIP model or classifier, or module:callable.")]
Given = Annotated[list[str] | None, typer.Option(
    metavar="KIND=FOLDER", help="A model to make candidates with: vae (a tiny autoencoder) and lora (for few steps) for images, student and "
    "draft (a smaller model, to be trained or to guess) for text; repeatable.",
)]  # fmt: skip
PromptTokens = Annotated[int | None, typer.Option(help="Tokens of a measured prompt (ISL), unless --prompts brings its own.  [default: 64]")]
OutputTokens = Annotated[int | None, typer.Option(help="New tokens of a measured request (OSL).  [default: 32]")]
ArrivalsOf = Annotated[str | None, typer.Option(
    "--arrivals", help="poisson:RATE or fixed:RATE also measures what callers wait, queueing included, where so many requests a second arrive, "
    "such as poisson:2.5.  [default: closed, which measures nothing beside --concurrency]",
)]  # fmt: skip
Precision = Annotated[str | None, typer.Option(help="Half-width of a speedup's interval at which it counts as decided.  [default: 2%]")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join.  [default: RAY_ADDRESS, else one on this machine, else an embedded one]")]
Store = Annotated[str | None, typer.Option(help="Folder that all nodes share, or s3:// or gs:// URI.  [default: $GENOPT_STORE or the user's cache]")]
Out = Annotated[str | None, typer.Option(help="Run folder to create.  [default: runs/MODEL-TIME]")]
Deploy = Annotated[bool | None, typer.Option("--deploy", help="Serve the winner at the end.")]
Port = Annotated[int | None, typer.Option(help="Port of the deployment.  [default: 8000]")]
MaxTrials = Annotated[int | None, typer.Option(help="Most candidates that the search may add.  [default: until the budget ends]")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.  [default: 0]")]
ProgressStyle = Annotated[Progress, typer.Option(
    "--progress", help="What stderr shows: a table on a terminal and lines elsewhere (auto), lines, or one JSON object per event (json): phase, "
    "budget, started, activity, finished, ended, error, each with `time` and `event`.",
)]  # fmt: skip
Fresh = Annotated[bool, typer.Option("--fresh", help="Find every number in this run: the same as --reuse nothing.")]
ReuseOf = Annotated[str | None, typer.Option(
    "--reuse", help="What is taken over from earlier runs alike: nothing, quality (scores of the evaluation text, judged anew) or everything "
    "(speeds, too; who would win by them is measured again). The report marks it.  [default: quality]",
)]  # fmt: skip
TrustRemoteCode = Annotated[bool | None, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]


def spec_of(model: str | None, config: Path | None, **flags: Any) -> RunSpec:
    """The spec of a file with the given flags laid over it."""
    from genopt.spec import build, load

    values = load(config) if config is not None else {}
    if model is not None:
        values["model"] = model
    values.update({name: value for name, value in flags.items() if value is not None and value != []})
    return build(values)


def reuse_of(fresh: bool, reuse: str | None) -> str | None:
    """What the two options together ask for.

    Raises:
        SpecError: They contradict each other.
    """
    from genopt.errors import SpecError

    if fresh and reuse not in (None, "nothing"):
        raise SpecError(f"--fresh takes nothing over from earlier runs, and --reuse {reuse} does; leave one of them out.")
    return "nothing" if fresh else reuse


def size_bytes(text: str | None) -> int | None:
    """A size such as 20GB in bytes.

    Raises:
        SpecError: It is none.
    """
    from genopt.errors import SpecError

    if text is None:
        return None
    number, unit = text[:-2].strip(), _UNITS.get(text[-2:].lower())
    if unit is None or not number.replace(".", "", 1).isdigit():
        raise SpecError(f"{text!r} is not a size; write for example 500MB or 20GB.")
    return int(float(number) * unit)


def pairs(values: list[str] | None, example: str = "genopt/role=measure") -> dict[str, str]:
    """What a repeated KEY=VALUE option says.

    Args:
        values: As they were written.
        example: Such a pair, for the error.

    Raises:
        SpecError: One is no such pair.
    """
    from genopt.errors import SpecError

    found = {}
    for value in values or []:
        key, sign, content = value.partition("=")
        if not key or not sign:
            raise SpecError(f"{value!r} is no KEY=VALUE pair; write for example {example}.")
        found[key] = content
    return found


def given_of(values: list[str] | None) -> dict[str, str] | None:
    """Folders by kind; None where the option is not used, so that a spec's own stay.

    Raises:
        SpecError: One is no pair.
    """
    return pairs(values, example="vae=./taesd") or None


def listed(values: str | None) -> list[str] | None:
    """The parts of a comma-separated option."""
    return values.split(",") if values is not None else None
