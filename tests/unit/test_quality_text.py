"""Texts are read from every kind of file, divided without overlap, and cut into fair windows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import DataError
from genopt.quality.text_data import Documents, load_documents, overlap, split, text_digest, windows

TEXTS = st.lists(st.text(alphabet="abcdef ghi", min_size=1, max_size=60).filter(str.strip), min_size=2, max_size=30, unique_by=str.strip)


def documents(*texts: str) -> Documents:
    return Documents(texts=texts, source="test", digest="0")


def encode(text: str) -> list[int]:
    return list(text.encode())


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_without_a_file_the_texts_are_pythons_own_help() -> None:
    found = load_documents(None)
    assert found.source == f"Python {sys.version_info.major}.{sys.version_info.minor} help texts (pydoc_data.topics)"
    assert load_documents(None).digest == found.digest
    evaluation, calibration = split(found, 0)
    total = sum(map(len, found.texts))
    assert sum(map(len, evaluation.texts)) / total == pytest.approx(0.6, abs=0.05)
    assert sum(map(len, calibration.texts)) / total == pytest.approx(0.4, abs=0.05)


def test_blank_lines_divide_a_text_file(tmp_path: Path) -> None:
    found = load_documents(write(tmp_path / "a.txt", "one\ntwo\r\n\n  \nthree\n"))
    assert found.texts == ("one\ntwo", "three")
    assert found.source == str(tmp_path / "a.txt")


def test_json_lines_hold_texts_or_chats(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    found = load_documents(write(tmp_path / "a.jsonl", f"{json.dumps({'text': 'one' + chr(0x2028) + 'line'})}\n\n{json.dumps(chat)}\n"))
    assert found.texts == ("one\u2028line", "Hi\nHello")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_holds_a_text_column(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"id": [1, 2, 3], "text": pa.array(["one", None, "two"], kind)}), tmp_path / "a.parquet")
    assert load_documents(tmp_path / "a.parquet").texts == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", r"ends in \.txt, \.jsonl, \.parquet"),
        ("a.txt", "", "holds no text"),
        ("a.txt", " \n\n ", "holds no text"),
        ("a.txt", b"ab\xff", r"not UTF-8 text \(byte 2\)"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "Line 2 of .* is not JSON"),
        ("a.jsonl", '{"other": "a"}\n', "Line 1 of .* has no text"),
        ("a.jsonl", '["a"]\n', "Line 1 of .* has no text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', "Line 1 of .* has no text"),
        ("a.jsonl", '{"messages": []}\n', "Line 1 of .* has no text"),
        ("a.jsonl", "", "holds no text"),
        ("a.parquet", "not parquet", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_remedy(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_documents(write(tmp_path / name, content))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"content": ["a"]}, {"text": [1]}])
def test_parquet_without_a_text_column_names_what_it_has(tmp_path: Path, values: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"it has {next(iter(values))}"):
        load_documents(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="There is no file"):
        load_documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_folder_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"Cannot read|not a Parquet file"):
        load_documents(tmp_path / name)


@given(texts=TEXTS, seed=st.integers(0, 100))
def test_a_split_keeps_every_text_once_and_shares_none(texts: list[str], seed: int) -> None:
    evaluation, calibration = split(documents(*texts, *texts[:3]), seed)
    assert sorted(map(text_digest, evaluation.texts + calibration.texts)) == sorted(map(text_digest, texts))
    overlap(evaluation, calibration)
    assert split(documents(*texts), seed) == (evaluation, calibration)


def test_another_seed_splits_otherwise() -> None:
    texts = documents(*(f"text {index}" for index in range(40)))
    assert split(texts, 0)[0].digest != split(texts, 1)[0].digest


def test_a_single_document_is_cut_at_a_space() -> None:
    evaluation, calibration = split(documents("the quick brown fox jumps over a lazy dog"), 0)
    assert (evaluation.texts, calibration.texts) == (("the quick brown fox jumps",), ("over a lazy dog",))


@pytest.mark.parametrize("text", ["word", "word ", "again again"])
def test_too_little_text_cannot_be_split(text: str) -> None:
    with pytest.raises(DataError, match="give a longer text"):
        split(documents(text), 0)


def test_shared_documents_are_refused() -> None:
    with pytest.raises(DataError, match="share 1 documents"):
        overlap(documents("one", "two"), documents("two ", "three"))


@given(texts=TEXTS, window=st.integers(2, 40), limit=st.integers(2, 400))
def test_windows_are_full_within_the_limit_and_taken_from_the_joined_text(texts: list[str], window: int, limit: int) -> None:
    joined = encode("\n\n".join(texts))
    found = windows(documents(*texts), encode, window, limit)
    size = min(window, limit)
    assert sum(map(len, found)) <= limit
    if len(joined) < size:
        assert found == [joined]
    else:
        places = [joined[place * size : (place + 1) * size] for place in range(min(len(joined), limit) // size)]
        assert sorted(found) == sorted(places)


def test_the_order_of_windows_is_mixed_but_always_the_same() -> None:
    text = documents("".join(chr(32 + index % 90) for index in range(600)))
    found = windows(text, encode, 10, 10_000)
    assert found == windows(text, encode, 10, 10_000)
    assert found != [encode(text.texts[0])[place : place + 10] for place in range(0, 600, 10)]


def test_encoding_stops_at_the_limit() -> None:
    seen: list[str] = []

    def counting(text: str) -> list[int]:
        seen.append(text)
        return encode(text)

    windows(documents(*("a" * 100 for _ in range(50))), counting, 10, 250)
    assert len(seen) == 3


def test_a_single_token_is_no_window() -> None:
    assert windows(documents("a"), encode, 8, 100) == []
