"""The engine sessions that a text bench keeps open."""

from __future__ import annotations

from pathlib import Path

from genopt.engines.base import GenerationRequest
from genopt.measure.energy import gpu_energy, joules_per_token, read_energy
from genopt.measure.text_speed import TextWorkload
from genopt.plan import JsonValue, Metric
from genopt.process import SessionProcess
from genopt.tasks.base import BenchConfig
from genopt.tasks.sessions import RoleSessions

ENERGY_PROMPTS = 3


class BenchSessions(RoleSessions[SessionProcess]):
    """Sessions of language models by role.

    Args:
        config: The bench's.
    """

    def __init__(self, config: BenchConfig) -> None:
        super().__init__(config, SessionProcess)

    def resources(self, role: str, artifact: Path, workload: TextWorkload) -> dict[str, Metric]:
        """What a session took to load, to hold and, where that is counted, in energy.

        Counters of processors count what all parts of a node do, so that on a part only its GPU's is read.
        """
        found = self.loading(role, artifact, context=max(map(len, workload.prompts)) + workload.output_tokens)
        read = read_energy if self._config.alone else gpu_energy
        joules = joules_per_token(lambda: self._answered(self[role], workload), read)
        if joules is not None:
            counted = "the node" if self._config.alone else "the GPU"
            conditions: dict[str, JsonValue] = {"what": "prompt and answer of a single stream", "counters": counted}
            found["energy_j_per_token"] = Metric(value=joules, unit="J/token", conditions=conditions)
        return found

    @staticmethod
    def _answered(session: SessionProcess, workload: TextWorkload) -> int:
        """Answers a few prompts one after the other; returns the number of new tokens."""
        asked = [GenerationRequest(prompt_ids=prompt, max_new_tokens=workload.output_tokens) for prompt in workload.prompts[:ENERGY_PROMPTS]]
        return sum(len(session.generate([request])[0].token_ids) for request in asked)
