"""How long and on what `distill` and `distill_given` train."""

from __future__ import annotations

from pydantic import Field

from genopt.plan import Record


class DistillParams(Record):
    """Parameters.

    Attributes:
        steps: Updates of the weights, each on one sequence, or on one for every GPU.
        time_s: Seconds after which training ends although steps are left.
        learning_rate: Peak of AdamW's learning rate.
        max_seq_length: Tokens per sequence.
        hidden_weight: Weight of the hidden states' distance beside the divergence of what is predicted; 0 leaves it out, as models do whose
            hidden states have another width than the original's.
        written_sequences: Sequences that the original writes itself, which are trained on in turn with calibration text.
    """

    steps: int = Field(default=1000, gt=0)
    time_s: float = Field(default=30.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    max_seq_length: int = Field(default=256, ge=8)
    hidden_weight: float = Field(default=0.0, ge=0)
    written_sequences: int = Field(default=0, ge=0)
