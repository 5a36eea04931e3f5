"""What is kept of the original's distributions is enough to compare with, exact where it can be, and read back as written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from genopt.engines.distribution import Distributions, Wanted, distributions, largest
from genopt.errors import StageError, StorageError
from genopt.quality.divergence import summary, worst
from genopt.quality.reference import FLOOR, NOTHING, compare, divergence, record, tail

VOCABULARY = 500


class Model:
    """A language model whose logits are noise that the tokens seed; `damage` moves them."""

    def __init__(self, damage: float = 0.0, vocabulary: int = VOCABULARY) -> None:
        self.damage, self.vocabulary = damage, vocabulary

    def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        shape = (len(sequence) - 1, self.vocabulary)
        plain = 3 * np.random.default_rng(sum(sequence)).normal(size=shape)
        return (plain + self.damage * np.random.default_rng(1).normal(size=shape)).astype(np.float32)

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        return distributions(self.logits(sequence), np.array(sequence[1:]), wanted)


def text(seed: int, length: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


SEQUENCES = [text(1), text(2, 17), text(3)]


def recorded(folder: Path, model: Model | None = None, top: int = 128) -> Path:
    record(model or Model(), SEQUENCES, folder / "reference.parquet", {"model": "abc"}, top)
    return folder / "reference.parquet"


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_the_original_does_not_differ_from_itself(tmp_path: Path) -> None:
    found = compare(Model(), SEQUENCES, recorded(tmp_path))
    assert found.log_probs == found.reference_log_probs
    assert found.top_ids == found.reference_top_ids
    assert max(max(row) for row in found.kl) < 1e-6
    facts = summary(found, SEQUENCES)
    assert (facts["top1_agreement"], facts["flips_per_1000"]) == (1.0, 0.0)


def test_divergence_on_the_most_probable_and_the_tail_bounds_the_whole_from_below(tmp_path: Path) -> None:
    damaged = Model(0.5)
    found = compare(damaged, SEQUENCES, recorded(tmp_path))
    whole = compare(damaged, SEQUENCES, recorded(tmp_path, top=VOCABULARY))
    for sequence, part, full in zip(SEQUENCES, found.kl, whole.kl, strict=True):
        p, q = log_softmax(Model().logits(sequence)), log_softmax(damaged.logits(sequence))
        exact = (np.exp(p) * (p - q)).sum(axis=1)
        np.testing.assert_allclose(full, exact, atol=2e-4)
        assert (np.array(part) <= exact + 1e-4).all()
        assert np.mean(part) > 0.8 * np.mean(exact)


def test_what_is_written_is_the_most_probable_and_the_rest(tmp_path: Path) -> None:
    path = recorded(tmp_path, top=10)
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == len(SEQUENCES)
    assert b'"model": "abc"' in table.schema.metadata[b"genopt"]
    first = table.slice(0, 39)
    p = log_softmax(Model().logits(SEQUENCES[0]))
    np.testing.assert_allclose(np.array(first["log_probs"].to_pylist()), -np.sort(-p, axis=1)[:, :10], atol=1e-4)
    np.testing.assert_allclose(np.exp(first["tail_log_prob"].to_numpy()), 1 - np.exp(-np.sort(-p, axis=1)[:, :10]).sum(axis=1), atol=1e-5)
    assert first["token"].to_pylist() == SEQUENCES[0][1:]


def test_another_text_is_refused(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    with pytest.raises(StorageError, match="about other text"):
        compare(Model(), [SEQUENCES[0], text(9, 17), SEQUENCES[2]], path)
    with pytest.raises(StorageError, match="holds 3 sequences where 1"):
        compare(Model(), SEQUENCES[:1], path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match="cannot be read"):
        compare(Model(), SEQUENCES, path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_original_without_finite_numbers_is_refused(tmp_path: Path, value: float) -> None:
    class Broken(Model):
        def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
            found = super().logits(sequence)
            found[3] = value
            return found

    with np.errstate(invalid="ignore"), pytest.raises(StageError, match="not finite"):
        recorded(tmp_path, Broken())


def test_a_candidate_that_rules_tokens_out_diverges_by_a_finite_amount(tmp_path: Path) -> None:
    class Masked(Model):
        def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
            found = super().logits(sequence)
            found[:, : VOCABULARY // 2] = -np.inf
            return found

    found = compare(Masked(), SEQUENCES, recorded(tmp_path))
    assert all(math.isfinite(value) and value > 1 for row in found.kl for value in row)


def test_a_candidate_without_numbers_has_no_worst_sequence_and_no_divergence(tmp_path: Path) -> None:
    class Broken(Model):
        def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
            return np.full_like(super().logits(sequence), np.nan)

    found = compare(Broken(), SEQUENCES, recorded(tmp_path))
    assert summary(found, SEQUENCES)["kl_mean"] is None
    assert worst(found, SEQUENCES, str) == ()


def test_flips_count_what_one_of_both_gets_right(tmp_path: Path) -> None:
    found = compare(Model(), SEQUENCES[:1], recorded_one(tmp_path))
    following = SEQUENCES[0][1:]
    wrong = [(token + 1) % VOCABULARY for token in following]
    half = tuple(following[:20] + wrong[20:])
    made = found.model_copy(update={"top_ids": (half,), "reference_top_ids": (tuple(following[:10] + wrong[10:]),)})
    facts = summary(made, SEQUENCES[:1])
    assert facts["flips_per_1000"] == pytest.approx(1000 * 10 / 39)
    assert facts["top1_agreement"] == pytest.approx(29 / 39)


def recorded_one(folder: Path) -> Path:
    record(Model(), SEQUENCES[:1], folder / "one.parquet", {})
    return folder / "one.parquet"


def test_the_worst_sequences_show_both_choices_where_they_differ_most(tmp_path: Path) -> None:
    class Local(Model):
        """Damaged in the middle of the second sequence."""

        def logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
            found = super().logits(sequence)
            if len(sequence) == 17:
                found[8] = -found[8]
            return found

    found = compare(Local(), SEQUENCES, recorded(tmp_path))
    shown = worst(found, SEQUENCES, lambda ids: " ".join(map(str, ids)))
    assert shown[0].sequence == 1
    differing = [place for place, (one, other) in enumerate(zip(shown[0].original, shown[0].candidate, strict=True)) if one != other]
    assert len(differing) == 1
    assert shown[0].text[differing[0]] == str(SEQUENCES[1][9])
    assert [item.sequence for item in shown[1:]] == sorted((0, 2), key=lambda place: -np.mean(found.kl[place]))


def test_comparisons_add_up(tmp_path: Path) -> None:
    found = compare(Model(), SEQUENCES, recorded(tmp_path))
    assert NOTHING + found == found
    assert len((found + found).kl) == 6


@given(seed=st.integers(0, 500), rows=st.integers(1, 5), length=st.integers(1, 900), count=st.integers(1, 130))
def test_the_largest_entries_are_found_in_order(seed: int, rows: int, length: int, count: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, length)).astype(np.float32)
    count = min(count, length)
    places = largest(values, count)
    np.testing.assert_array_equal(np.take_along_axis(values, places, axis=1), -np.sort(-values, axis=1)[:, :count])


def test_nothing_left_for_the_tail_is_the_floor() -> None:
    certain = np.log(np.array([[0.75, 0.25]], np.float32))
    assert tail(certain)[0] == pytest.approx(FLOOR, abs=40)
    assert divergence(certain, certain)[0] == 0
