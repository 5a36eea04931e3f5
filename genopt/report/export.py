"""A run's variant as a folder that other programs take: its files, where they come from, and how to run them."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from genopt.engines.openvino_options import WEIGHTS
from genopt.errors import SpecError, StorageError
from genopt.plan import Artifact, Candidate, Record
from genopt.report.accepted import accepted, files_of
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.report.wording import quality_interval, quality_percent, ratio, ratio_interval
from genopt.spec import build, load
from genopt.store.artifacts import is_whole
from genopt.store.files import storage_error, write_atomically
from genopt.store.run_folder import RunFolder

ORIGIN = "genopt.json"


class Format(Record):
    """What another program takes.

    Attributes:
        name: On the command line.
        traits: An artifact needs one of them.
        run: Commands that run it from within the folder.
        files: Further files, with their contents.
        renamed: Files that it looks for under other names, by their names in the artifact.
    """

    name: str
    traits: frozenset[str]
    run: tuple[str, ...]
    files: dict[str, str] = {}
    renamed: dict[str, str] = {}


FORMATS: Mapping[str, Format] = {
    found.name: found
    for found in (
        Format(
            name="transformers", traits=frozenset({"hf", "compressed_tensors", "torchao"}),
            run=("python -c \"from transformers import pipeline; print(pipeline('text-generation', '.')('What is machine learning?'))\"",),
        ),
        Format(name="vllm", traits=frozenset({"hf", "compressed_tensors"}), run=("vllm serve .",)),
        Format(name="llama.cpp", traits=frozenset({"gguf"}), run=("llama-server --model model.gguf",)),
        Format(
            name="ollama", traits=frozenset({"gguf"}), run=("ollama create NAME --file Modelfile", "ollama run NAME"),
            files={"Modelfile": "FROM ./model.gguf\n"},
        ),
        Format(
            name="onnxruntime-genai", traits=frozenset({"onnx_genai"}),
            run=("python -c \"import onnxruntime_genai as og; print(og.Tokenizer(og.Model('.')).encode('Hi'))\"",),
        ),
        Format(
            name="openvino", traits=frozenset({"openvino"}), renamed={WEIGHTS: "openvino_model.bin"},
            run=("python -c \"import openvino; print(openvino.compile_model('openvino_model.xml', 'CPU'))\"",),
        ),
    )
}  # fmt: skip


class Exported(Record):
    """What was written.

    Attributes:
        folder: Where.
        variant: Name of the candidate.
        formats: Programs that take it.
        bytes: Size of its artifact.
    """

    folder: str
    variant: str
    formats: tuple[str, ...]
    bytes: int


def formats_of(artifact: Artifact) -> tuple[str, ...]:
    """Programs that take an artifact as it is."""
    return tuple(name for name, one in FORMATS.items() if one.traits & set(artifact.traits))


def export(folder: RunFolder, destination: Path, *, to: str | None, variant: str | None) -> Exported:
    """Writes a variant's files, whole or not at all.

    Args:
        folder: Of its run.
        destination: Folder to write; must not exist.
        to: A key of `FORMATS`, which it must fit; None takes any.
        variant: Name of the candidate; None takes the winner, or the baseline where there is none.

    Raises:
        DeploymentError: There is no such candidate, or it was not accepted.
        SpecError: It does not fit, there is no such format, or the destination exists.
        StorageError: The files are gone or cannot be copied.
    """
    report = assemble(folder)
    candidate = accepted(report, variant)
    artifact = files_of(report, candidate, build(load(folder.path / "spec.yaml")).store)
    if not is_whole(artifact):
        raise StorageError(f"{artifact.path} is gone from the store; run the optimization again, or restore the store it was made with.")
    fitting = formats_of(artifact)
    if to is not None and to not in fitting:
        raise SpecError(_unfit(report, candidate, to))
    if destination.exists():
        raise SpecError(f"{destination} already exists; give a folder that does not.")
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
    shown = fitting if to is None else (to,)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(artifact.path, partial, ignore=shutil.ignore_patterns(".*"))
        for name in shown:
            for path, content in FORMATS[name].files.items():
                write_atomically(partial / path, content)
            for before, after in FORMATS[name].renamed.items():
                (partial / before).rename(partial / after)
        write_atomically(partial / ORIGIN, json.dumps(_origin(report, candidate, artifact), indent=2) + "\n")
        write_atomically(partial / "GENOPT.md", _notes(report, candidate, shown))
        partial.rename(destination)
    except OSError as error:
        raise storage_error(destination, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder=str(destination), variant=candidate.name, formats=shown, bytes=artifact.bytes)


def _unfit(report: Report, candidate: Candidate, to: str) -> str:
    if to not in FORMATS:
        return f"There is no format {to!r}; choose one of {', '.join(FORMATS)}."
    others = [one.name for one in report.candidates if one.status == "accepted" and one.artifact is not None and to in formats_of(one.artifact)]
    said = (
        f"choose with --variant among {', '.join(others)}"
        if others
        else "no accepted candidate of this run is; optimize with an engine that makes it"
    )
    return f"{candidate.name} is nothing that {to} takes; {said}."


def _origin(report: Report, candidate: Candidate, artifact: Artifact) -> dict[str, object]:
    return {
        "model": {"id": report.model.id, "digest": report.model.digest}, "run": report.run, "candidate": candidate.model_dump(mode="json"),
        "artifact_digest": artifact.digest,
    }  # fmt: skip


def _notes(report: Report, candidate: Candidate, formats: tuple[str, ...]) -> str:
    speed = candidate.speedup.get("vs_original")
    lines = [f"# {candidate.name} of {report.model.id}", "", f"Made by genopt; how it was made and measured stands in {ORIGIN}.", ""]
    if speed is not None:
        lines.append(f"- Speed: {ratio(speed)} that of the original, in genopt's engine {candidate.engine} (95 % interval {ratio_interval(speed)})")
    if candidate.quality is not None:
        interval = quality_interval(candidate.quality)
        lines.append(f"- Quality: {quality_percent(candidate.quality.ratio)} of the original's (95 % interval {interval})")
    for name in formats:
        lines += ["", f"With {name}:", "", *(f"    {command}" for command in FORMATS[name].run)]
    return "\n".join(lines) + "\n"
