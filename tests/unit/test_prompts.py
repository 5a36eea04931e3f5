"""Prompts of one's own: the three kinds of file, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genopt.errors import DataError
from genopt.measure.prompts import Message, read_prompts

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
CONVERSATION = tuple(Message(**turn) for turn in TURNS)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n  two \u2028 more \r\n", encoding="utf-8")
    assert read_prompts(path) == ("one", "two \u2028 more")


def test_json_lines_have_texts_or_conversations(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"prompt": "one\nmore", "id": 3}, {"messages": TURNS}, {"prompt": "two", "messages": TURNS}])))
    assert read_prompts(path) == ("one\nmore", CONVERSATION, "two")


@pytest.mark.parametrize(("column", "values", "expected"), [
    ("prompt", ["one", "two"], ("one", "two")), ("messages", [TURNS], (CONVERSATION,)),
])  # fmt: skip
def test_parquet_has_a_column_of_them(tmp_path: Path, column: str, values: list[object], expected: tuple[object, ...]) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": list(range(len(values))), column: values}), path)
    assert read_prompts(path) == expected


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", None, "there is no such file"), ("a.txt", b"\n \n", "no prompts"), ("a.txt", b"\xff\xfe", "UTF-8"), ("a.csv", b"x", "ends in .txt"),
    ("a.jsonl", b"one\n", "Line 1"), ("a.jsonl", b'{"prompt": "a"}\n\n{"text": "b"}\n', "Line 3"), ("a.jsonl", b'{"prompt": 3}\n', "Line 1"),
    ("a.jsonl", b'{"prompt": " "}\n', "Line 1"), ("a.jsonl", b"[1]\n", "Line 1"), ("a.jsonl", b'{"messages": []}\n', "Line 1"),
    ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "Line 1"), ("a.jsonl", b'{"messages": [{"role": "user", "content": [1]}]}\n', "Line 1"),
    ("a.parquet", b"no table", "not a Parquet file"),
])  # fmt: skip
def test_bad_prompts_are_a_usage_error(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert caught.value.exit_code == 2


def test_a_folder_and_a_table_without_prompts_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(DataError, match="Cannot read"):
        read_prompts(tmp_path / "d.txt")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"no column `prompt` or `messages` \(it has text\)"):
        read_prompts(tmp_path / "e.parquet")
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="Row 2"):
        read_prompts(tmp_path / "f.parquet")
