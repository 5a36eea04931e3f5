"""How much of the log-likelihood that dropped layers cost comes back by distillation within minutes.

    python tests/benchmarks/distillation_recovery.py FOLDER [--count 4] [--seconds 300] [--tokens 8000]

Drops layers of SmolLM2-135M-Instruct as the technique `drop_layers` does, distils the rest for a while as `distill` does, and scores held-out text
with the original, the model without those layers, and the distilled one. FOLDER keeps the dropped and the distilled model. Prints nats per
token of each and the share of the loss that came back; exit code 1 where it is below a half.

On 2 cores of an AMD EPYC server with AVX-512 (2026-11-29): 2.4872 nats per token of the original, 3.1768 without 4 of 30 layers, 2.7003
distilled for 300 s (245 sequences of 256 tokens): 69.1 % came back.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from pathlib import Path

from genopt import catalog
from genopt.engines.torch_engine import TorchEngine
from genopt.models.resolve import resolve
from genopt.plan import JsonValue
from genopt.tasks.text_data import TextSet, prepare
from genopt.techniques.base import TransformContext

GOAL = 0.5
THREADS = 2


def changed(technique: str, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext) -> Path:
    """The result of a technique, made once."""
    if not destination.exists():
        partial = destination.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        catalog.load("techniques", technique).apply(source, partial, params, context, lambda text: print(f"  {text}", file=sys.stderr))
        partial.rename(destination)
    return destination


def nats(folder: Path, texts: TextSet, tokens: int) -> float:
    """Negative log-likelihood per token of evaluation text."""
    session = TorchEngine.open(folder, {"threads": THREADS})
    try:
        windows = texts.windows[: max(1, tokens // len(texts.windows[0]))]
        found = [value for window in windows for row in session.score([window]).log_probs for value in row]
        return -math.fsum(found) / len(found)
    finally:
        session.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4, help="layers to drop")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--tokens", type=int, default=8000, help="of the text that is scored")
    asked = parser.parse_args()
    model = Path(resolve("smollm2-135m", cache=asked.folder / "models", progress=print).path)
    prepare({"model": str(model), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "prompt_tokens": 64, "output_tokens": 32,
             "max_context": 8192, "destination": str(asked.folder / "data")}, 600.0)  # fmt: skip
    texts = TextSet.model_validate_json((asked.folder / "data" / "text_set.json").read_text(encoding="utf-8"))
    context = TransformContext(original=str(model), calibration=texts.calibration, seed=0, threads=THREADS, time_limit_s=10 * asked.seconds)
    dropped = changed("drop_layers", model, asked.folder / f"dropped-{asked.count}", {"count": asked.count}, context)
    began = time.monotonic()
    params: dict[str, JsonValue] = {"time_s": asked.seconds, "steps": 100_000}
    distilled = changed("distill", dropped, asked.folder / f"distilled-{asked.count}-{asked.seconds:g}", params, context)
    print(f"distilled in {time.monotonic() - began:.0f} s", file=sys.stderr)
    found = {name: nats(folder, texts, asked.tokens) for name, folder in (("original", model), ("dropped", dropped), ("distilled", distilled))}
    recovered = (found["dropped"] - found["distilled"]) / (found["dropped"] - found["original"])
    print(", ".join(f"{name} {value:.4f}" for name, value in found.items()) + " nats per token")
    print(f"{recovered:.1%} of what {asked.count} layers cost came back after {asked.seconds:g} s (goal {GOAL:.0%})")
    return 0 if recovered >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
