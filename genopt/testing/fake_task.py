"""A task whose candidates run on the fake engine: everything but the model is real."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from genopt.measure.exclusivity import Unwatched
from genopt.plan import JsonValue, Plan
from genopt.search.space import Point, Space, compose
from genopt.spec import RunSpec
from genopt.tasks.base import Bench, BenchConfig
from genopt.tasks.text_bench import TextBench
from genopt.tasks.text_inputs import require_text_inputs
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer


def fake_plan(name: str, **options: JsonValue) -> Plan:
    """A plan without steps on the fake engine."""
    return Plan(name=name, engine="fake", options=options)


class FakeTask:
    """See `genopt.tasks.base.Task`: one candidate per way to end."""

    name = "fake-text"
    modality = "text"
    prepare_stage = "prepare_text"
    tasks_stage = "score_text_tasks"
    sensitivity_stage = ""
    profile_stage = "no such stage"
    """A profile that fails, as one may; a run goes on without it."""
    pace_metric = "tpot_ms"
    given: Mapping[str, str] = {}

    @staticmethod
    def require_inputs(spec: RunSpec) -> None:
        """As for real ones."""
        require_text_inputs(spec)

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The original is half as fast as the baseline."""
        return fake_plan("original", delay_ms=8), fake_plan("baseline", delay_ms=4)

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """A good one, a wrong one, one that crashes and one that cannot run here."""
        return [
            fake_plan("twice-as-fast", delay_ms=2),
            fake_plan("fast-but-wrong", delay_ms=1, loss=0.1),
            fake_plan("crashes", crash=True),
            fake_plan("needs-a-gpu", needs_gpu=True),
        ]

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """None."""
        return frozenset()

    @staticmethod
    def space() -> Space:
        """Faster ones, of which some are wrong."""
        return compose({"fake": ""}, {})

    @staticmethod
    def seeds() -> list[Point]:
        """The best one first."""
        return [FakeTask.space().complete({})]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench; it repeats nothing because of the tests beside it, which would wait for each other to end."""
        return TextBench(config, FakeTask.references(), Unwatched())


def write_fake_model(folder: Path) -> None:
    """Writes a folder that resolves as a language model, with a tokenizer and a few zeros as weights."""
    write_tiny_tokenizer(folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 512, "eos_token_id": 257, "vocab_size": 258}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = json.dumps({"embed": {"dtype": "BF16", "shape": [258, 4], "data_offsets": [0, 2064]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2064))
