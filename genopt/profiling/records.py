"""What a profile says, as values that reports read too. Imports no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.plan import Record

Bound = Literal["memory", "compute", "overhead", "io"]


class Bottleneck(Record):
    """A part of the original's time; for language models, of a decode step.

    Attributes:
        name: What takes the time.
        share: Its share of the time, in (0, 1].
        bound: What limits it.
        detail: The measurement behind the claim.
        advice: What to do about it.
    """

    name: str
    share: float = Field(gt=0, le=1)
    bound: Bound
    detail: str
    advice: str


class Operator(Record):
    """One of PyTorch's operators in one run of a phase.

    Attributes:
        name: As the profiler names it.
        calls: How often it ran.
        ms: Its time without the operators that it calls, and without the profiler's own cost; on a GPU, time of its kernels.
        share: Of the phase's time.
    """

    name: str
    calls: int = Field(gt=0)
    ms: float = Field(ge=0)
    share: float = Field(ge=0, le=1)


class FamilyShare(Record):
    """A family of modules in one phase.

    Attributes:
        name: The family.
        ms: Its time.
        time_share: Of the phase's time.
        bytes: What it must read.
        byte_share: Of all that the phase must read.
        operations: Floating-point operations that it must do.
    """

    name: str
    ms: float = Field(ge=0)
    time_share: float = Field(ge=0, le=1)
    bytes: float = Field(ge=0)
    byte_share: float = Field(ge=0, le=1)
    operations: float = Field(ge=0)


class Phase(Record):
    """A phase of generation, such as the prefill, against the machine's limits.

    Attributes:
        name: Of the phase.
        ms: Its time, without the tokenizer's.
        bytes: Bytes that it must read: weights once, and state such as the KV cache. Counted from the model.
        operations: Floating-point operations that it must do; a multiplication and an addition are two. Counted from the model.
        mbu: Share of the read bandwidth that these bytes make in that time.
        mfu: Share of the arithmetic rate that these operations make in that time.
        limited_by: The largest of `causes_ms`, by name.
        bound: The same in the words of `Bottleneck`.
        causes_ms: Its time, and the tokenizer's, by what took it, the largest first.
        detail: All of this in a sentence.
        families: Parts of the model, the slowest first.
        operators: Operators that took the most time, the slowest first.
    """

    name: str
    ms: float = Field(gt=0)
    bytes: float = Field(ge=0)
    operations: float = Field(ge=0)
    mbu: float = Field(ge=0)
    mfu: float = Field(ge=0)
    limited_by: str
    bound: Bound
    causes_ms: dict[str, float]
    detail: str
    families: tuple[FamilyShare, ...]
    operators: tuple[Operator, ...]


class GraphBreak(Record):
    """A place at which `torch.compile` has to leave its graph and come back.

    Attributes:
        file: The model's source file, relative to the folder of the package that it belongs to.
        line: Line of that file; 0 where it is not known.
        reason: What could not be captured.
    """

    file: str
    line: int
    reason: str


class GraphBreaks(Record):
    """What `torch.compile` would make of a step.

    Attributes:
        count: Places that break the graph; None where the step was not traced.
        graphs: Graphs that Dynamo made of it, one where nothing breaks; None likewise.
        breaks: The places.
        note: What was traced and how long that took, or why it was not.
    """

    count: int | None = None
    graphs: int | None = None
    breaks: tuple[GraphBreak, ...] = ()
    note: str
