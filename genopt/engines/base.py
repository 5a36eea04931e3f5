"""The engine contract: open an artifact, get a session; and what sessions of language models do.

Token ids go in and out of those: tokenization happens once, with the original's tokenizer, outside every
engine. Sessions that make images are in `genopt.engines.images`. A session is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

from pydantic import Field

from genopt.engines.distribution import Distributions, Wanted
from genopt.plan import JsonValue, Record
from genopt.search.space import Tunable

MAX_TOP_LOGPROBS = 20
WRITTEN_AFTER_TEXT = 1
"""Tokens of the context that a text which is scored must leave: engines such as vLLM write one after whatever they read."""
SPARE_THREADS = Tunable(name="spare_threads", choices=(0, 1), words=("", "spare-1-thread"))
"""Processors left to others; whoever opens a session turns it into a number of threads, so engines need not know it."""


class GenerationRequest(Record):
    """One sequence to continue.

    Attributes:
        prompt_ids: Token ids, at least one.
        max_new_tokens: Upper bound of new tokens.
        stop_token_ids: Any of them ends the sequence (it is not returned); empty never stops early.
        temperature: 0 is greedy.
        top_p: Nucleus mass, in (0, 1].
        seed: Makes sampling repeatable on one machine.
        top_logprobs: Report each new token's log-probability and those of this many most probable ones; None reports nothing.
    """

    prompt_ids: tuple[int, ...] = Field(min_length=1)
    max_new_tokens: int = Field(gt=0)
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


class TokenLogProbs(Record):
    """Natural log-probabilities at one position, of the model itself: before temperature and `top_p`.

    Attributes:
        log_prob: Of the token that was chosen.
        top: Ids and log-probabilities of the most probable tokens, best first.
    """

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


class Generation(Record):
    """A continuation.

    Attributes:
        token_ids: New tokens, without the prompt and the stop token.
        timestamps_ns: Monotonic clock when each new token was known, one per token.
        started_ns: Monotonic clock when the request entered the engine.
        finish_reason: `stop` or `length`, or `cancelled`.
    """

    token_ids: tuple[int, ...]
    timestamps_ns: tuple[int, ...]
    started_ns: int
    finish_reason: str


class Scores(Record):
    """Log-probabilities of given sequences: entry i is about token i + 1 given all before it."""

    log_probs: tuple[tuple[float, ...], ...]
    top_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, found: Iterable[Distributions]) -> Self:
        """Those of sequences whose distributions are known."""
        rows = [(tuple(one.log_probs.tolist()), tuple(one.top_ids.tolist())) for one in found]
        return cls(log_probs=tuple(log_probs for log_probs, _ in rows), top_ids=tuple(ids for _, ids in rows))


class Memory(Record):
    """Memory of the session's process.

    Attributes:
        rss_bytes: Resident now.
        peak_rss_bytes: Resident at its peak.
        device_peak_bytes: The device's peak as the engine's allocator counts it; 0 on CPUs.
        kv_cache_bytes: Keys and values that the last request's cache had room for, and where room is reserved, the most that requests filled
            of it at once; 0 where the engine does not tell.
        kv_bytes_per_token: Of them, bytes per token of one sequence.
        kv_reserved_bytes: Room for keys and values that the engine takes when it opens, whatever requests need, and that its peak counts; 0 where
            it takes room as it goes.
    """

    rss_bytes: int
    peak_rss_bytes: int
    device_peak_bytes: int = 0
    kv_cache_bytes: int = 0
    kv_bytes_per_token: float = 0.0
    kv_reserved_bytes: int = 0


OnToken = Callable[[int, int, TokenLogProbs | None], bool]
"""Called with (request index, token id, its log-probabilities where the request asked for them) as soon as a token is known;
returning False cancels that request."""


class Generates(Protocol):
    """The part of a session that whatever times it needs."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """Continues all requests as one batch."""


class Distributes(Protocol):
    """The part of a session that whatever compares two models needs."""

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """As `TextSession.score` for one sequence, with the log-probabilities of further tokens at each position.

        Memory is bounded: logits of a whole sequence are never held for more than a few dozen megabytes at a time.

        Args:
            sequence: At least 2 tokens.
            wanted: How many of the most probable tokens, or an array of ids with one row per token but the last.
        """


class Session(Protocol):
    """An opened artifact of any modality."""

    def memory(self) -> Memory:
        """Memory of this process now."""

    def close(self) -> None:
        """Releases the model; the session cannot be used afterwards."""


class TextSession(Session, Generates, Distributes, Protocol):
    """An opened language model."""

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """Teacher-forced natural log-probabilities, computed in float32, of sequences of at least 2 tokens."""


class StepOutcome(NamedTuple):
    """What one step of a running batch gave.

    Attributes:
        tokens: Key, token id and, where the request asked for them, log-probabilities of each new token.
        ended: Key and result of each request that is over.
        waited: Nothing is known to have happened; else the step was progress, though it may have given no token, such as where a prompt was read.
    """

    tokens: list[tuple[int, int, TokenLogProbs | None]]
    ended: list[tuple[int, Generation]]
    waited: bool = False


class RunningBatch(Protocol):
    """Requests that are continued together, and join and leave between two steps."""

    def join(self, key: int, request: GenerationRequest) -> None:
        """Takes a request in; its prompt is read in later steps, a bounded piece in each, so that the others go on meanwhile.

        Args:
            key: Names the request; no other one under way may have it.
            request: What to continue.

        Raises:
            SpecError: The model cannot take it.
        """

    def leave(self, key: int) -> None:
        """Ends a request as `cancelled` at the next step; one that is not under way is ignored."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""

    def step(self) -> StepOutcome:
        """Advances what is under way. After an error all its requests are lost and the batch cannot be used."""


@runtime_checkable
class Joinable(Protocol):
    """A session whose running batch can be joined; others continue one batch after another."""

    def running_batch(self, slots: int) -> RunningBatch | None:
        """An empty batch, or None where the model has none that could be joined.

        Args:
            slots: Most requests that it continues at once; whoever joins them sees to it.
        """


class Engine(Protocol):
    """An entry of the catalogue's engines. Class attributes are readable without opening anything."""

    name: str
    modality: str
    """What its sessions make; a name of the catalogue's sessions."""
    accepts: frozenset[str]
    """Artifact traits of which at least one must be present, for example {"hf"} or {"onnx_genai"}."""
    tunables: tuple[Tunable, ...]
    """Options that a search may change, and to what; `SPARE_THREADS` may be one of them."""
    environment: str | None
    """Catalogue name of the environment that it runs in; None is ours. `check` looks at the options and the machine, in ours too."""
    layer_overhead_s: float
    """Seconds per layer and unit of work beside reading and computing, from experience; predictions begin with it and correct it."""

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """Validates the options and that this machine can run them.

        Raises:
            InfeasibleError: It cannot, with the reason and the remedy.
            SpecError: Unknown option or bad value.
        """

    @staticmethod
    def prepare() -> None:
        """Imports what `open` needs, whatever it opens, and touches no device: a process that is made ready so waits for its artifact."""

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> Session:
        """Loads an artifact. Expensive; warm-up is part of it."""
