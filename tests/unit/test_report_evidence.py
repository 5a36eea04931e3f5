"""What a verdict rests on is in the reports, with both texts side by side and nothing of them interpreted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genopt.plan import Candidate, Quality, Ratio
from genopt.quality.divergence import WorstSequence
from genopt.report.write import write_reports
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder

WORST = WorstSequence(
    sequence=7, kl=0.1234, context="def <b>f</b>(x):\n| a | b |", text=("re", "turn", " x"), original=("re", "turn", "<i>"),
    candidate=("re", "set", "</pre><script>"),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    details = {
        "reason": "even the lower end holds the bar", "kl_mean": 0.0123456789, "generation": {"length_share": 0.98, "ended": 0.5},
        "worst_sequences": [WORST.model_dump(mode="json")],
    }  # fmt: skip
    quality = Quality(metric="likelihood_ratio", ratio=0.996, ci_low=0.994, ci_high=0.998, n=8192, verdict="accept", details=details)
    original = Candidate(name="original", status="accepted", reason="as it is", engine="torch")
    tried = original.model_copy(update={"name": "int8", "quality": quality})
    found = RunFolder.create(tmp_path / "run", dump(build({"model": "m"})), {})
    facts = {
        "source": "help texts", "digest": "e" * 64, "available_tokens": 65_536, "calibration_source": "other texts", "calibration_digest": "c" * 64,
    }  # fmt: skip
    found.append(
        "references", original=original.model_dump(mode="json"), baseline=original.model_copy(update={"name": "baseline"}).model_dump(mode="json"),
        aa=Ratio(value=1, ci_low=1, ci_high=1).model_dump(), evaluation=facts,
    )  # fmt: skip
    found.append("model_resolved", model={"id": "m", "modality": "text"})
    found.append("candidate_finished", candidate=tried.model_dump(mode="json"), seconds=1.0)
    write_reports(found)
    return found


def test_the_page_shows_both_choices_and_marks_where_they_differ(run: RunFolder) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<pre>return<mark>" not in page
    assert "<pre>re<mark>turn</mark><mark>&lt;i&gt;</mark></pre>" in page
    assert "<pre>re<mark>set</mark><mark>&lt;/pre&gt;&lt;script&gt;</mark></pre>" in page
    assert "<script>" not in page
    assert "def &lt;b&gt;f&lt;/b&gt;(x):" in page
    assert "kl_mean 0.0123457; generation.length_share 0.98; generation.ended 0.5" in page
    assert "worst_sequences" not in page


def test_the_markdown_has_them_in_a_table_of_their_own(run: RunFolder) -> None:
    text = (run.path / "report.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| int8 \| 0\.1234 .*$", text, flags=re.MULTILINE)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert r"return\<i\>" in row
    assert r"reset\</pre\>\<script\>" in row


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_texts_are_named_with_their_digests(run: RunFolder, name: str) -> None:
    text = (run.path / name).read_text(encoding="utf-8")
    assert "help texts, 65536 tokens (sha256 eeeeeeeeeeeeeeee…)" in text
    assert "other texts (sha256 cccccccccccccccc…)" in text
