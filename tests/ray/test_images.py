"""A whole run on a tiny pipeline, from its folder to a served winner that the official client asks for images."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

import genopt
from genopt.compare.preparation import prepare_comparison
from genopt.distributed.rollout import example_of
from genopt.quality.comparison import ComparisonFolder, ImageAnswer
from genopt.store.run_folder import RunFolder
from genopt.testing.plugin import write_plugin
from genopt.testing.ports import unused_port
from genopt.testing.tiny_pipelines import write_tiny_stable_diffusion

pytestmark = pytest.mark.ray
PROMPTS = ("a photo of a digit", "a handwritten digit", "a photo", "a digit", "a photo of", "a digit of a", "of a photo", "digit of digit")
"""As few as a verdict takes."""
PNG = b"\x89PNG\r\n"


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    """Until a deployment answers, or the command that was to make it has ended."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.alone  # who wins must be surely faster, which noise hides
def test_a_pipeline_is_optimized_and_its_winner_serves_images(tmp_path: Path) -> None:
    pipeline = write_tiny_stable_diffusion(tmp_path / "tiny")
    (pipeline / "prompts.txt").write_text("".join(f"{text}\n" for text in PROMPTS), encoding="utf-8")
    write_plugin(tmp_path / "plugin")
    port, run = unused_port(), tmp_path / "run"
    paths = os.pathsep.join([str(tmp_path / "plugin"), str(Path(genopt.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "GENOPT_STORE": str(tmp_path / "store"), "RAY_ADDRESS": "local"}
    command = [
        sys.executable, "-m", "genopt", "optimize", str(pipeline), "--task", "tiny-image", "--budget", "300s", "--precision", "15%",
        "--concurrency", "1,2", "--max-trials", "0", "--include", "half", "--scorer", "genopt.testing.tiny_image_task:any_picture",
        "--out", str(run), "--deploy", "--port", str(port),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, cwd=tmp_path
    )
    wait_for(f"http://127.0.0.1:{port}", process)
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        found = {candidate["name"]: candidate for candidate in report["candidates"]}
        assert report["winner"] == "half-the-steps"
        assert report["model"]["modality"] == "image"
        assert example_of(RunFolder.existing(run)) == "a photo", "its shortest prompt shows how to ask"
        assert {"latency_ms", "step_ms", "images_per_s@1", "images_per_s@2", "peak_memory_bytes", "load_s"} <= set(found["half-the-steps"]["metrics"])
        assert found["half-the-steps"]["reason"].startswith("the same images")
        assert found["baseline"]["quality"]["details"]["same_images"]
        page = (run / "report.html").read_text(encoding="utf-8")
        assert "Images side by side" in page
        assert page.count("data:image/png;base64,") >= 4
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            (model,) = client.models.list().data
            asked = {"model": model.id, "prompt": "a photo of a digit", "response_format": "b64_json", "extra_body": {"seed": 3}}
            first, again = (client.images.generate(**asked).data for _ in range(2))
            assert first is not None
            assert again is not None
            assert base64.b64decode(first[0].b64_json or "").startswith(PNG)
            assert first[0].b64_json == again[0].b64_json, "the same seed gives the same bytes"
            with pytest.raises(openai.BadRequestError) as refused:
                client.images.generate(model=model.id, prompt="a photo of a digit " * 50)
            assert refused.value.param == "prompt"
            several = client.images.generate(model=model.id, prompt="a digit", n=3, size="48x32").data
            assert several is not None
            assert len(several) == 3
        file = httpx.post(f"http://127.0.0.1:{port}/v1/images/generations", json={"prompt": "a digit"}, headers={"Accept": "image/png"}, timeout=60)
        assert (file.headers["X-Genopt-Variant"], file.content[: len(PNG)]) == ("half-the-steps", PNG)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130), said  # it may still be saying where it answers
    people_can_compare_its_images(run, tmp_path / "mine.txt")


def people_can_compare_its_images(run: Path, prompts: Path) -> None:
    prompts.write_text("a photo of a digit\na digit\n", encoding="utf-8")
    heard: list[tuple[str, int, int]] = []

    def prepare() -> ComparisonFolder:
        return prepare_comparison(
            RunFolder.existing(run), a=None, b=None, prompts=prompts, max_tokens=1,
            progress=lambda variant, done, of: heard.append((variant, done, of)),
        )  # fmt: skip

    folder = prepare()
    comparison = folder.read()
    assert [question.prompt for question in comparison.questions] == ["a photo of a digit", "a digit"]
    files = [question.answer(side) for question in comparison.questions for side in ("a", "b")]
    assert all(isinstance(answer, ImageAnswer) and folder.image(answer).read_bytes().startswith(PNG) for answer in files)
    assert heard == [(name, done, 2) for name in ("original", "half-the-steps") for done in range(3)]
    assert prepare().path == folder.path
    assert len(heard) == 6, "nothing is made twice"
