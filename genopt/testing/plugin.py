"""Registers the fakes the way another distribution would: through entry points."""

from __future__ import annotations

from pathlib import Path


def write_plugin(folder: Path) -> None:
    """Makes `folder` offer a fake engine, technique and tasks to every process that has it on `PYTHONPATH`.

    Args:
        folder: Created if missing.
    """
    info = folder / "genopt_fake_engine-0.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: genopt-fake-engine\nVersion: 0.0.0\n", encoding="utf-8")
    entries = """\
[genopt.engines]
fake = genopt.testing.fake_engine:FakeEngine

[genopt.techniques]
fake_transform = genopt.testing.fake_technique:FakeTransform
fake_spread = genopt.testing.fake_technique:FakeSpread

[genopt.tasks]
fake-text = genopt.testing.fake_task:FakeTask
sleep = genopt.testing.sleep_task:SleepTask
wide = genopt.testing.wide_task:WideTask
tiny-image = genopt.testing.tiny_image_task:TinyImageTask
"""
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
