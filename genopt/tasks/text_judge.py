"""Judges language-model candidates against the original on one node: likelihood, divergence, and what they write.

A candidate is first judged on little text, which is enough for the worst; whoever is left gets more until the gate
decides. What a verdict rests on besides the likelihood stands in the details of the quality record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from genopt import clock
from genopt.models.text_prefix import text_prefix
from genopt.models.tokenizer import load_tokenizer
from genopt.plan import Plan, Quality
from genopt.process import SessionProcess
from genopt.quality.decode_check import check_decoding
from genopt.quality.divergence import summary, worst
from genopt.quality.gate import SequentialGate
from genopt.quality.generation import Continuations, check
from genopt.quality.generation import continuations as continue_prompts
from genopt.quality.held_out import difference
from genopt.tasks.base import BenchConfig, Progress
from genopt.tasks.text_data import TextSet
from genopt.tasks.text_evidence import Case, TextEvidence
from genopt.tasks.text_reference import TextReference

LOOKS = (2_048, 8_192, 12_288, 16_384, 24_576, 32_768, 49_152, 65_000, 98_304, 131_072, 196_608, 262_000)
"""Cumulative evaluation tokens at which the gate may decide; the default text reaches to 65,000."""
ACCEPT_FROM = 8_000
"""Tokens from which on a candidate may be accepted; the first look only rejects."""


class TextJudge:
    """The judge of one bench.

    Args:
        config: The bench's.
        data: The evaluation text and prompts.
        plan: How the original is run.
    """

    def __init__(self, config: BenchConfig, data: TextSet, plan: Plan) -> None:
        self._config, self._data = config, data
        self._tokenizer = load_tokenizer(Path(config.original))
        # The first token of a window is given anyway; of a prefix of several the rest must not be scored either.
        self._given = max(0, len(text_prefix(self._tokenizer)) - 1)
        self._scored = [window[self._given :] for window in data.windows]
        self._gate = SequentialGate(bar=config.quality, looks=_looks(self._scored), accept_from=ACCEPT_FROM, seed=config.seed)
        self._reference = TextReference(config, plan, data)
        self._evidence = TextEvidence(config)
        self._original: SessionProcess | None = None
        self._continuations: Continuations | None = None

    def prepare(self, original: SessionProcess) -> None:
        """Takes the open original, and has it answer whatever the store does not have yet.

        Raises:
            StageError: Its log-probabilities are not finite.
        """
        self._original = original
        self._part(0)
        self._continuations = self._reference.continuations(original)

    def facts(self) -> dict[str, JsonValue]:
        """What the report says about the evaluation."""
        data = self._data
        return {
            "source": data.source, "digest": data.digest, "calibration_source": data.calibration_source,
            "calibration_digest": data.calibration_digest, "window_tokens": max(len(window) for window in data.windows),
            "available_tokens": sum(map(len, data.windows)), "looks": list(self._gate.looks), "first_ids": list(data.held_out.first_ids),
            "held_out_prompts": len(data.held_out.ids), "chat_template": data.held_out.template,
        }  # fmt: skip

    def first_look(self, case: Case, progress: Progress) -> Quality:
        """Judges on little text: enough to reject what is clearly worse. Where there is no bar, nothing is, and this is all that is read."""
        quality = self._look(case, 0, progress)
        if not self._config.quality and quality.ratio > 0:  # of unusable scores it is 0
            case.quality = quality = quality.model_copy(update={"verdict": "accept", "details": {**quality.details, "reason": "there is no bar"}})
        return quality

    def verdict(self, case: Case, deadline: float, progress: Progress) -> Quality:
        """Spends more evaluation tokens until the gate decides or hardly would, or text or time end; then checks what the candidate writes."""
        quality = case.quality or self.first_look(case, progress)
        for look in range(1, len(self._gate.looks)):
            if quality.verdict != "inconclusive" or quality.details.get("futile"):
                break
            missing = self._window_count(look) - len(case.found.kl)
            if clock.now() + case.pace * missing > deadline:
                stopped = "the time for this candidate ended before the verdict"
                quality = quality.model_copy(update={"details": {**quality.details, "stopped": stopped, "reason": stopped}})
                break
            quality = self._look(case, look, progress)
        held = quality.verdict == "accept" or (quality.verdict == "inconclusive" and "stopped" not in quality.details)
        if held and self._config.quality:
            progress("checking what it writes")
            quality = self._checked(case, quality)
        shown = [item.model_dump(mode="json") for item in worst(case.found, self._scored, self._decode)]
        return quality.model_copy(update={"details": {**quality.details, "worst_sequences": shown}})

    def _look(self, case: Case, look: int, progress: Progress) -> Quality:
        """Scores the windows that a look adds and asks the gate."""
        progress(f"judging at {self._gate.looks[look]} tokens")
        for part in range(look + 1):
            first, last = self._span(part)
            if len(case.found.kl) < last:
                started = clock.now()
                case.found += self._evidence.compared(case, self._data.windows[first:last], self._part(part)).after(self._given)
                case.pace = (clock.now() - started) / max(1, last - first)
        found = case.found
        quality = self._gate.decide(found.reference_log_probs, found.log_probs, look)
        details = {**quality.details, **summary(found, self._scored[: len(found.kl)])}
        case.quality = quality.model_copy(update={"details": details})
        return case.quality

    def _checked(self, case: Case, quality: Quality) -> Quality:
        """The verdict, unless it reads prompts otherwise than the original, or writes what the original or its own scores would not."""
        prompts = self._data.held_out
        problem = difference(prompts, case.folder)
        details: dict[str, JsonValue] = {**quality.details, "first_ids": list(prompts.first_ids), "reads_prompts_alike": problem is None}
        if problem is None and self._continuations is not None:
            ours = continue_prompts(case.session, prompts.ids, self._data.stop_ids, self._config.seed)
            written, problem = check(self._continuations, ours, self._decode)
            regrets, unfaithful = check_decoding(case.session, prompts.ids, ours.greedy, self._data.stop_ids)
            details["generation"], problem = {**written, **regrets}, problem or unfaithful
        if problem is None:
            return quality.model_copy(update={"details": details})
        return quality.model_copy(update={"verdict": "anomalous", "details": {**details, "anomaly": problem, "reason": problem}})

    def _part(self, look: int) -> Path:
        """The file with what the original says about the windows that a look adds."""
        if self._original is None:
            raise RuntimeError("prepare comes first")
        return self._reference.windows(self._original, *self._span(look))

    def _span(self, look: int) -> tuple[int, int]:
        """The windows that a look adds."""
        return self._window_count(look - 1) if look else 0, self._window_count(look)

    def _window_count(self, look: int) -> int:
        """How many evaluation windows a look needs."""
        total = 0
        for count, window in enumerate(self._scored, start=1):
            total += len(window) - 1
            if total >= self._gate.looks[look]:
                return count
        return len(self._data.windows)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _looks(windows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The looks that the text reaches; the last one takes all of it, where that is worth a look of its own."""
    available = sum(len(window) - 1 for window in windows)
    looks = tuple(look for look in LOOKS if look <= available)
    return (*looks, available) if not looks or available > 1.2 * looks[-1] else looks
