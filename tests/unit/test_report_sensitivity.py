"""What a report says about the parts of a model."""

from __future__ import annotations

from pathlib import Path

from genopt.report import html, markdown
from genopt.report.assemble import assemble
from genopt.search.precision import FAMILIES, Part, Sensitivity
from genopt.testing.fake_run import write_fake_run

FOUND = Sensitivity(
    parts=(
        *(Part(name=name, kind="family", weights=1_000_000, kl={8: 0.0001, 4: 0.01 * (place + 1)}) for place, name in enumerate(FAMILIES)),
        Part(name="7", kind="layer", weights=500_000, kl={8: 0.0001, 4: 0.0345}),
    ),
    block_size=32, tokens=2048,
)  # fmt: skip


def test_the_costs_of_parts_and_the_mixtures_are_shown(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run")
    run.append("sensitivity", sensitivity=FOUND.model_dump(mode="json"))
    report = assemble(run)
    assert report.sensitivity == FOUND
    text, page = markdown.render(report, ""), html.render(report, "")
    for said in ("Which parts bear fewer bits", "gate_up_proj", "layer 7", "0.03450", "2,048 tokens", "Best mixtures", "Predicted KL"):
        assert said in text.replace("\\", "")
        assert said in page


def test_a_pass_that_was_skipped_says_why(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run")
    run.append("sensitivity_skipped", reason="the budget is too short")
    report = assemble(run)
    for form in (markdown.render(report, ""), html.render(report, "")):
        assert "The parts of the model were not tried one by one: the budget is too short." in form


def test_nothing_is_said_where_it_is_of_no_use(tmp_path: Path) -> None:
    report = assemble(write_fake_run(tmp_path / "run"))
    for form in (markdown.render(report, ""), html.render(report, "")):
        assert "Which parts" not in form
