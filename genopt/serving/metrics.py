"""What Prometheus is told of serving, through Ray: requests, tokens, times, queues and the canary. Nothing names callers or prompts.

Ray exports the names with `ray_` before them, and counters with `_total` behind; Serve adds the application, deployment and replica.
`serving/grafana.json` shows them all.
"""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram

from genopt.serving.engine_thread import EngineLoad
from genopt.serving.guard import Finished
from genopt.serving.rollout import RolloutStatus

TTFT_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
TPOT_S = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0]
E2EL_S = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
_STATES = ("running", "complete", "promoted", "replaced", "rolled_back")


class RequestMetrics:
    """Counts what the ingress answered."""

    def __init__(self) -> None:
        self._requests = Counter("genopt_requests", "Requests that ended, by status and what went wrong.", ("variant", "endpoint", "status", "code"))
        self._prompt = Counter("genopt_prompt_tokens", "Tokens of the prompts of answered requests.", ("variant",))
        self._completion = Counter("genopt_completion_tokens", "New tokens that callers got.", ("variant",))
        self._ttft = Histogram("genopt_ttft_seconds", "Time to the first token.", TTFT_S, ("variant",))
        self._tpot = Histogram("genopt_tpot_seconds", "Time per further token.", TPOT_S, ("variant",))
        self._e2el = Histogram("genopt_e2el_seconds", "Time to the end of an answer.", E2EL_S, ("variant",))

    def note(self, request: Finished) -> None:
        """A request has ended."""
        variant = {"variant": request.variant}
        self._requests.inc(1, {**variant, "endpoint": request.endpoint, "status": str(request.status), "code": request.code or ""})
        if request.prompt_tokens:
            self._prompt.inc(request.prompt_tokens, variant)
        if request.completion_tokens:
            self._completion.inc(request.completion_tokens, variant)
            self._e2el.observe(request.e2el_s, variant)
        if request.ttft_s is not None:
            self._ttft.observe(request.ttft_s, variant)
        if request.tpot_s is not None:
            self._tpot.observe(request.tpot_s, variant)


class EngineMetrics:
    """Tells what an engine replica has under way; tokens by steps are its mean batch size.

    Args:
        variant: Whose engine it is.
    """

    def __init__(self, variant: str) -> None:
        self._tags = {"variant": variant}
        self._running = Gauge("genopt_engine_running", "Requests that the engine continues.", ("variant",))
        self._waiting = Gauge("genopt_engine_waiting", "Requests that wait for a place in its batch.", ("variant",))
        self._tokens = Counter("genopt_engine_tokens", "Tokens that the engine made, read by a caller or not.", ("variant",))
        self._steps = Counter("genopt_engine_steps", "Steps, or whole batches where requests cannot join one.", ("variant",))
        self._told = (0, 0)

    def note(self, load: EngineLoad) -> None:
        """The load has changed, or nobody has asked for a while."""
        self._running.set(load.running, self._tags)
        self._waiting.set(load.waiting, self._tags)
        tokens, steps = load.tokens - self._told[0], sum(load.batch_sizes.values()) - self._told[1]
        if tokens:
            self._tokens.inc(tokens, self._tags)
        if steps:
            self._steps.inc(steps, self._tags)
        self._told = (self._told[0] + tokens, self._told[1] + steps)


class CanaryMetrics:
    """Tells where a rollout stands."""

    def __init__(self) -> None:
        self._share = Gauge("genopt_canary_share_percent", "Share of the callers that the canary answers.", ("variant",))
        self._state = Gauge("genopt_canary_state", "1 for the state that the rollout is in.", ("variant", "state"))
        self._failed = Gauge("genopt_canary_failed_share", "Failed ones of the latest requests.", ("variant", "arm"))

    def note(self, status: RolloutStatus) -> None:
        """The rollout was looked at."""
        variant = {"variant": status.progress.variant}
        self._share.set(status.share, variant)
        for state in _STATES:
            self._state.set(int(state == status.progress.state), {**variant, "state": state})
        for arm, seen in status.requests.items():
            self._failed.set(status.failures[arm] / max(1, seen), {**variant, "arm": arm})
