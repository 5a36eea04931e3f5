"""What is installed: one import package, typed, that starts quickly and loads nothing heavy."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging
ROOT = Path(__file__).parents[2]
HELP_LIMIT_S = 0.5


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy of its sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("genopt", "jobs", "serving", "cluster", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.Path(next(folder.glob("*.whl")))


def test_genopt_is_the_only_importable_name(wheel: zipfile.Path) -> None:
    assert [item.name for item in wheel.iterdir() if not item.name.endswith(".dist-info")] == ["genopt"]


def test_every_module_and_data_file_is_in_it(wheel: zipfile.Path) -> None:
    packed = set(wheel.root.namelist())
    data = (".py", ".typed", ".jinja", ".html", ".css", ".js", ".json", ".safetensors")
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "genopt").rglob("*") if path.name.endswith(data)}
    assert "genopt/py.typed" in packed
    assert expected - packed == set()


def test_its_name_version_and_command(wheel: zipfile.Path) -> None:
    info = next(item for item in wheel.iterdir() if item.name.endswith(".dist-info"))
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("genopt-ray", "0.1.0", ">=3.11")
    assert "genopt = genopt.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["genopt", "genopt.cli", "genopt.models.resolve"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'transformers', 'pandas', 'onnxruntime'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_shown_at_once() -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "genopt", "--help"], cwd=ROOT, capture_output=True, check=True)
        times.append(time.monotonic() - started)
    assert statistics.median(times) < HELP_LIMIT_S


def test_the_built_in_pipeline_is_found_in_an_installed_wheel(wheel: zipfile.Path, tmp_path: Path) -> None:
    wheel.root.extractall(tmp_path / "site")
    code = (
        "from pathlib import Path; from genopt.models.resolve import resolve\n"
        "model = resolve('digits-diffusion', cache=Path('cache'), progress=lambda message: None)\n"
        "print(model.path, model.architecture)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "site" / "genopt" / "models" / "assets" / "digits_diffusion"), "StableDiffusionPipeline"]
