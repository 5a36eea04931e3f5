"""What a tokenizer puts before every text stands before all that is made of plain text, once, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from genopt.models.text_prefix import begun, fitted, text_prefix
from genopt.serving.text import ModelText
from genopt.tasks.base import Prepared
from genopt.tasks.text_data import TextSet, prepare
from genopt.tasks.text_finalists import ModelTokens
from genopt.techniques.calibration import calibration_pieces, calibration_prefix, calibration_sequences, write_sequences
from genopt.testing.tiny_tokenizer import BOS_ID, EOS_ID, surround_texts, write_tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def configure(model: Path, **values: Any) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def prefix(model: Path) -> tuple[int, ...]:
    return text_prefix(Tokenizer.from_file(str(model / "tokenizer.json")))


def prepared(model: Path, **values: Any) -> tuple[TextSet, Prepared]:
    payload = {
        "model": str(model), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "prompt_tokens": 16, "output_tokens": 32,
        "max_context": 512, "destination": str(model.parent / f"data{len(prefix(model))}"), **values,
    }  # fmt: skip
    found = Prepared.model_validate(prepare(payload, 0.0))
    return TextSet.model_validate_json(Path(found.data).read_text()), found


def test_most_byte_pair_tokenizers_have_none(model: Path) -> None:
    assert prefix(model) == ()
    surround_texts(model, before=(), after=("</s>",))
    assert prefix(model) == (), "what stands at the end is none"


def test_what_stands_before_a_text_is_told_apart_from_what_stands_behind_it(model: Path) -> None:
    surround_texts(model, before=("<s>",), after=("</s>",))
    assert prefix(model) == (BOS_ID,)
    surround_texts(model, before=("</s>", "<s>"), after=("<s>",))
    assert prefix(model) == (EOS_ID, BOS_ID)


@pytest.mark.parametrize("surrounded", [False, True])
@pytest.mark.parametrize("values", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_transformers_reads_the_same_whatever_the_configuration_says(model: Path, values: dict[str, bool], surrounded: bool) -> None:
    from transformers import AutoTokenizer

    configure(model, **values, tokenizer_class="PreTrainedTokenizerFast")
    if surrounded:
        surround_texts(model)
    read = AutoTokenizer.from_pretrained(model)("ab")["input_ids"]
    assert tuple(read) == ModelText(model).prompt_ids("ab") == (*prefix(model), *b"ab")
    assert prefix(model) == ((BOS_ID,) if surrounded else ())


def test_a_tokenizer_like_llamas_adds_what_it_is_told_to_add(model: Path) -> None:
    """As such a model's folder is written: transformers puts `add_bos_token` into `tokenizer.json`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(model)
    assert prefix(model) == (BOS_ID,)
    assert ModelText(model).prompt_ids("ab") == (BOS_ID, *b"ab")


def test_a_text_that_begins_with_the_prefix_gets_it_once(model: Path) -> None:
    surround_texts(model, after=("</s>",))
    for text in (ModelText(model).prompt_ids, lambda text: tuple(ModelTokens(model).encode(text, True))):
        assert text("ab") == text("<s>ab") == (BOS_ID, *b"ab")
    assert ModelTokens(model).encode("ab", False) == list(b"ab")


def test_a_text_that_is_too_long_is_cut_behind_its_prefix() -> None:
    assert fitted([9, 1, 2, 3, 4], 3, [9]) == [9, 3, 4]
    assert fitted([9, 1, 2, 3, 4], 1, [9]) == [4]
    assert fitted([1, 2, 3, 4], 3, [9]) == [2, 3, 4]
    assert fitted([1, 2, 3, 4], 3, []) == [2, 3, 4]
    assert fitted([9, 1, 2], 3, [9]) == [9, 1, 2]
    assert begun([], [9]) == [9]


def test_all_that_is_made_of_text_begins_with_it_and_is_as_long_as_before(model: Path) -> None:
    before, plain = prepared(model)
    surround_texts(model)
    configure(model, chat_template=None)
    after, found = prepared(model)
    for mine, theirs in ((before.windows, after.windows), (before.prompts, after.prompts), (sequences(plain), sequences(found))):
        assert {len(ids) for ids in mine} == {len(ids) for ids in theirs}
        assert len(mine) == len(theirs)
        assert {ids.index(BOS_ID) for ids in theirs} == {0}
        assert {ids.count(BOS_ID) for ids in theirs} == {1}
        assert not any(BOS_ID in ids for ids in mine)
    assert after.held_out.texts == ()
    assert {(ids[0], len(ids)) for ids in after.held_out.ids} == {(BOS_ID, 32)}
    assert found.calibration_digest != plain.calibration_digest, "else a store would give what was calibrated without it"


def sequences(found: Prepared) -> list[list[int]]:
    return calibration_sequences(found.calibration, 100_000)


def test_without_one_the_very_same_text_is_read(model: Path) -> None:
    words = " ".join(f"word{number * number % 7919}" for number in range(12_000))
    path = model.parent / "own.txt"
    path.write_text(words)
    found, ready = prepared(model, eval_data=str(path))
    text = words.encode()
    assert sorted(map(bytes, found.windows)) == sorted(text[start : start + 511] for start in range(0, len(found.windows) * 511, 511))
    assert ready.calibration_digest == found.calibration_digest
    assert pq.read_schema(ready.calibration).metadata is None


def test_every_piece_of_a_calibration_sequence_begins_with_it(tmp_path: Path) -> None:
    path = tmp_path / "calibration.parquet"
    write_sequences(path, [[9, *range(511)], [9, *range(600, 1111)]], [9])
    assert calibration_prefix(str(path)) == (9,)
    pieces = calibration_pieces(str(path), 6, 128)
    assert [piece[0] for piece in pieces] == [9] * 6
    assert {len(piece) for piece in pieces} == {128}
    assert [token for piece in pieces[:4] for token in piece[1:]] == list(range(508))
    assert [ids[0] for ids in calibration_sequences(str(path), 700)] == [9, 9]


def test_calibration_without_one_is_cut_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "calibration.parquet"
    pq.write_table(pa.table({"ids": pa.array([list(range(300))], pa.list_(pa.int32()))}), path)
    assert calibration_prefix(str(path)) == ()
    assert calibration_pieces(str(path), 6, 128) == [list(range(128)), list(range(128, 256))]
