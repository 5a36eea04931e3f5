"""Texts are read from every kind of file, divided without overlap, and cut into fair windows."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import DataError
from genopt.quality import text_files
from genopt.quality.text_data import Documents, evaluation_windows, load_documents, overlap, split, text_digest, windows

TEXTS = st.lists(
    st.text(alphabet="abcdef ghi", min_size=1, max_size=60).filter(lambda text: 0 < len(text.split()) <= 13), min_size=2, max_size=30,
    unique_by=lambda text: tuple(text.split()),
)  # fmt: skip


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
    sizes = [sum(map(len, part.texts)) for part in (evaluation, calibration)]
    assert sizes[0] / sum(sizes) == pytest.approx(0.6, abs=0.05)
    assert sum(sizes) > 0.75 * sum(map(len, found.texts))
    assert "near-duplicates" in evaluation.source, "the help of a topic often stands in that of a larger one, too"
    overlap(evaluation, calibration)


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
    assert [part.texts for part in split(documents(*texts), seed)] == [evaluation.texts, calibration.texts]


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


def sentence(seed: int, words: int) -> str:
    numbers = np.random.default_rng(seed).integers(0, 10_000, words)
    return " ".join(f"word{number}" for number in numbers.tolist())


def test_a_passage_that_both_have_is_refused_whatever_its_case_and_punctuation() -> None:
    passage = sentence(1, 60)
    longer = f"{sentence(2, 100)} {passage.upper().replace(' ', ', ')}!"
    with pytest.raises(DataError, match="share 1 documents"):
        overlap(documents(sentence(3, 80), longer), documents(passage, sentence(4, 80)))


def test_a_quotation_is_no_overlap() -> None:
    quoted = sentence(1, 20)
    overlap(documents(f"{sentence(2, 200)} {quoted}"), documents(f"{sentence(3, 200)} {quoted}"))


def test_documents_that_stand_in_longer_ones_are_left_out_of_both_parts() -> None:
    whole = [sentence(seed, 200) for seed in range(10)]
    pieces = [" ".join(text.split()[20:120]) for text in whole[:4]]
    evaluation, calibration = split(documents(*pieces, *whole), 0)
    assert sorted(evaluation.texts + calibration.texts) == sorted(whole)
    assert evaluation.source == "test, without 4 near-duplicates"


def test_a_text_that_quotes_all_others_does_not_calibrate_them() -> None:
    whole = [sentence(seed, 100) for seed in range(12)]
    collage = " ".join(" ".join(text.split()[:30]) for text in whole) + " " + sentence(99, 100)
    for seed in range(6):
        evaluation, calibration = split(documents(*whole, collage), seed)
        overlap(evaluation, calibration)


def test_evaluation_equal_to_calibration_is_refused() -> None:
    texts = documents(*(sentence(seed, 50) for seed in range(5)))
    with pytest.raises(DataError, match="share 5 documents"):
        overlap(texts, texts)


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


@pytest.mark.parametrize(("words", "size"), [(10_000, 512), (3_000, 256), (1_500, 128), (600, 128)])
def test_a_short_text_is_cut_into_shorter_windows(words: int, size: int) -> None:
    found = evaluation_windows(documents("abc " * words), encode, 512, 65_536)
    assert {len(window) for window in found} == {size}
    assert len(found) == (min(4 * words, 65_536)) // size


@pytest.mark.parametrize("text", ["one line", "abc " * 300])
def test_too_little_evaluation_text_is_refused_with_what_is_needed(text: str) -> None:
    with pytest.raises(DataError, match="a verdict needs at least 1536"):
        evaluation_windows(documents(text), encode, 512, 65_536)


def test_windows_are_no_longer_than_the_models_context() -> None:
    assert {len(window) for window in evaluation_windows(documents("abc " * 10_000), encode, 100, 65_536)} == {100}


def test_a_bad_byte_is_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE", 7)
    content = "ü".encode() * 20 + b"\xc3("
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 40\)"):
        load_documents(write(tmp_path / "a.txt", content))


def test_a_sparse_file_of_a_gigabyte_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(DataError, match="NUL bytes"):
        load_documents(path)


def test_a_line_of_json_may_not_be_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LINE_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"Line 2 of .* is longer than 1 MiB"):
        load_documents(write(tmp_path / "a.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b" * (1 << 20)})))


@pytest.mark.parametrize(("line", "says"), [('{"text": "cut \\ud83d here"}', "half a character"), ("[" * 100_000, "nested too deeply")])
def test_a_line_that_nothing_can_be_made_of_is_named(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"Line 2 of .* {says}"):
        load_documents(write(tmp_path / "a.jsonl", json.dumps({"text": "a"}) + "\n" + line))


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_a_large_file_is_sampled_without_holding_it(tmp_path: Path, separator: str) -> None:
    """64 MB of documents, paragraphs, one endless line, or one endless word; Python's own allocations are counted."""
    path = tmp_path / "large.txt"
    with path.open("w") as stream:
        for number in range(64):
            stream.write(f"{number:>7}{separator}".join(["x" * 992] * 1000))
    tracemalloc.start()
    found = load_documents(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000
    kept = sum(map(len, found.texts))
    assert 3_000_000 < kept <= 4_200_000
    assert f"a sample of {kept:,} of 6" in found.source
    assert max(map(len, found.texts)) <= 400_000


def test_the_sample_of_a_file_is_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "KEPT_CHARACTERS", 1_000)
    path = write(tmp_path / "a.txt", "\n\n".join(f"document {number} " + "x" * 50 for number in range(200)))
    first, second = load_documents(path), load_documents(path)
    assert first == second
    numbers = [int(text.split()[1]) for text in first.texts]
    assert numbers == sorted(numbers)
    assert max(numbers) > 100 > min(numbers), "not its beginning alone"


def test_an_endless_word_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    found = load_documents(write(tmp_path / "a.txt", "y" * 900_000))
    assert "".join(found.texts).replace("\n", "") == "y" * 900_000


@pytest.mark.parametrize(("name", "content"), [("a.txt", "one\r\n\r\ntwo"), ("a.jsonl", '{"text": "one"}\r\n{"text": "two"}\r\n')])
def test_files_of_other_systems_are_read_alike(tmp_path: Path, name: str, content: str) -> None:
    assert load_documents(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())).texts == ("one", "two")


def test_prompts_with_answers_are_texts_too(tmp_path: Path) -> None:
    lines = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "Sky?", "choices": ["red", "blue"], "label": 1}, {"prompt": "Open"}]
    assert load_documents(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))).texts == ("1+1= 2", "Sky? blue", "Open")
