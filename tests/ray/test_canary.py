"""Canaries on a real Ray and Serve with fake engines: they get their share, advance, are taken back, and die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from genopt.errors import DeploymentError
from genopt.plan import Plan
from genopt.serving import canary_deploy, deployment
from genopt.serving.canary import Policy
from genopt.serving.canary_app import CANARY, status_of
from genopt.serving.manifest import Scaling, serve_config
from genopt.serving.rollout import read_progress
from genopt.serving.running import running_content
from genopt.testing.ports import unused_port
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

pytestmark = pytest.mark.ray

WAIT_S = 60.0
HTTP = httpx.Client(timeout=WAIT_S)
"""One for all questions: to make one takes longer than to ask."""
QUICK = Policy(steps=(50.0, 100.0), step_s=0.5, step_requests=5)
SLOW = Policy(steps=(50.0, 100.0), step_s=3600, step_requests=5)


@pytest.fixture(scope="module")
def folder(embedded_ray: Path) -> Path:
    write_tiny_tokenizer(embedded_ray / "model", context=400)
    return embedded_ray


@pytest.fixture(scope="module")
def port() -> int:
    return unused_port()


@pytest.fixture(scope="module")
def config(folder: Path, port: int) -> Callable[..., Path]:
    def write(name: str, *, run: str = ".", file: str | None = None, artifact: str | None = None, **options: object) -> Path:
        content = serve_config(
            application="genopt", model_id="tiny", host="127.0.0.1", port=port, artifact=folder / (artifact or name), model_folder=folder / "model",
            variant=Plan(name=name, engine="fake", options={"text": "abc ", **options}),
            scaling=Scaling(target_ongoing_requests=4, max_ongoing_requests=6, max_queued_requests=16, min_replicas=1, max_replicas=1),
            threads=1, num_cpus=1, num_gpus=0, log_folder=folder / run / "logs",
        )  # fmt: skip
        path = folder / run / (file or f"serve-{name}.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def url(config: Callable[..., Path]) -> Iterator[str]:
    with HTTP:
        yield deployment.deploy(config("old"), wait_s=WAIT_S, progress=print).url


def _ask(url: str, session: str) -> str:
    """Asks one question, which must be answered; returns by whom."""
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "temperature": 0}
    answer = HTTP.post(f"{url}/v1/completions", json=body, headers={"X-Session-Id": session})
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Genopt-Variant"]


def _ask_until(url: str, condition: Callable[[], bool]) -> None:
    """Keeps asking as many callers until another process says that something came true."""
    deadline, number = time.monotonic() + WAIT_S, 0
    while not condition():
        assert time.monotonic() < deadline, deployment.status()
        _ask(url, str(number % 40))
        number += 1
        threading.Event().wait(0.05)


def _state(folder: Path) -> str:
    found = read_progress(folder / canary_deploy.STATE)
    return "" if found is None else found.state


def test_a_canary_gets_its_share_of_callers_who_keep_it_and_can_be_taken_back(url: str, config: Callable[..., Path]) -> None:
    with pytest.raises(DeploymentError, match="served already"):
        canary_deploy.begin(config("old"), SLOW, wait_s=WAIT_S, progress=print)
    begun = canary_deploy.begin(config("new"), SLOW, wait_s=WAIT_S, progress=print)
    assert (begun.progress.state, begun.share) == ("running", 50)
    with pytest.raises(DeploymentError, match="is a canary already"):
        canary_deploy.begin(config("other"), SLOW, wait_s=WAIT_S, progress=print)
    _ask_until(url, lambda: any(_ask(url, str(one)) == "new" for one in range(8)))
    first = {str(one): _ask(url, str(one)) for one in range(24)}
    assert set(first.values()) == {"old", "new"}
    assert first == {one: _ask(url, one) for one in first}
    assert deployment.status()[CANARY]["rollout"]["progress"]["variant"] == "new"
    assert canary_deploy.roll_back(config("old"), "by hand", wait_s=WAIT_S, progress=print) == "old"
    assert {_ask(url, one) for one in first} == {"old"}
    assert CANARY not in deployment.status()


def test_whoever_waits_for_a_canary_is_told_that_it_was_taken_away(url: str, config: Callable[..., Path]) -> None:
    def take_away(_: str) -> None:
        """As another terminal does meanwhile."""
        deadline = time.monotonic() + WAIT_S
        while "rollout" not in deployment.status()[CANARY]:
            assert time.monotonic() < deadline
            threading.Event().wait(0.1)
        assert canary_deploy.roll_back(config("old"), "by hand", wait_s=WAIT_S, progress=print) == "old"

    with pytest.raises(DeploymentError, match="was taken away while it was being deployed"):
        canary_deploy.begin(config("slow", open_s=20.0), SLOW, wait_s=WAIT_S, progress=take_away)
    assert _ask(url, "s") == "old"


def test_a_canary_whose_engine_dies_fails_nobody_and_is_taken_back_with_its_reason(url: str, config: Callable[..., Path], folder: Path) -> None:
    canary_deploy.begin(config("deadly", crash_token=97), QUICK, wait_s=WAIT_S, progress=print)
    _ask_until(url, lambda: _state(folder) == "rolled_back")
    with pytest.raises(DeploymentError, match="was rolled back") as refused:
        canary_deploy.follow(progress=print, limit_s=WAIT_S)
    assert refused.value.exit_code == 5
    kept = read_progress(folder / canary_deploy.STATE)
    assert kept is not None
    assert (kept.state, kept.variant) == ("rolled_back", "deadly")
    assert "dead" in kept.reason
    assert {_ask(url, str(one)) for one in range(10)} == {"old"}


def test_a_healthy_canary_advances_to_all_and_is_promoted_without_a_failure(
    url: str, config: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = QUICK.model_copy(update={"slower": 10.0})  # other tests take the processor from one of two equals now and then
    canary_deploy.begin(config("better"), alike, wait_s=WAIT_S, progress=print)
    _ask_until(url, lambda: _state(folder) == "complete")
    silent = [None, None]  # as where the rollout's node is busy, or its replica is being replaced
    monkeypatch.setattr(canary_deploy, "status_of", lambda rollout: silent.pop() if silent else status_of(rollout))
    assert canary_deploy.follow(progress=print, limit_s=WAIT_S).state == "complete"
    done = threading.Event()
    failed: list[BaseException] = []

    def keep_asking() -> None:
        while not done.is_set():
            try:
                _ask(url, "s")
            except (AssertionError, httpx.HTTPError) as error:
                failed.append(error)
                return

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        endpoint = canary_deploy.promote(config("better"), folder / "serve.yaml", wait_s=WAIT_S, progress=print)
    finally:
        done.set()
        asking.join()
    assert failed == []
    assert endpoint.variant == _ask(url, "s") == "better"
    assert CANARY not in deployment.status()
    with pytest.raises(DeploymentError, match="There is no canary any more"):
        canary_deploy.follow(progress=print, limit_s=WAIT_S)


def test_a_retrained_model_whose_winner_is_called_as_what_is_served_is_a_canary_with_a_name_of_its_own(
    url: str, config: Callable[..., Path], folder: Path
) -> None:
    served = _ask(url, "s")
    with pytest.raises(DeploymentError, match="served already"):
        canary_deploy.begin(config("renamed", artifact=served), SLOW, wait_s=WAIT_S, progress=print)
    kept = folder / "second" / "serve-canary.yaml"
    written = config(served, run="second", file="serve-canary-next.yaml", artifact="retrained")
    begun = canary_deploy.begin(written, SLOW, kept=kept, wait_s=WAIT_S, progress=print).progress
    assert begun.stable == served
    assert begun.variant.startswith(f"{served}@")
    _ask_until(url, lambda: {_ask(url, str(one)) for one in range(24)} == {served, begun.variant})
    with pytest.raises(DeploymentError, match="name the run that it is of"):
        canary_deploy.promote(config(begun.variant, run="third", artifact="another"), folder / "third" / "serve.yaml", wait_s=WAIT_S, progress=print)
    endpoint = canary_deploy.promote(kept, folder / "second" / "serve.yaml", wait_s=WAIT_S, progress=print)
    assert endpoint.variant == _ask(url, "s") == begun.variant
    with pytest.raises(DeploymentError, match="served already"):
        canary_deploy.begin(config(served, artifact="retrained"), SLOW, wait_s=WAIT_S, progress=print)


def test_what_another_run_had_deployed_is_put_back_as_it_was_deployed(url: str, config: Callable[..., Path], folder: Path) -> None:
    deployed = config("first", run="first", file="serve.yaml")
    deployment.deploy(deployed, wait_s=WAIT_S, progress=print)
    expected = deployment.read_config(deployed)
    config("never deployed", run="first", file="serve.yaml")
    kept, current = folder / "second" / "serve-canary.yaml", config("first", run="second", file="serve.yaml", artifact="never deployed")
    canary_deploy.begin(config("next", run="second", file="serve-canary-next.yaml"), SLOW, kept=kept, wait_s=WAIT_S, progress=print)
    assert canary_deploy.promote(kept, current, wait_s=WAIT_S, progress=print).variant == "next"
    found = deployment.read_config(folder / "second" / canary_deploy.PREVIOUS)
    assert (found.arguments, found.overrides, found.url) == (expected.arguments, expected.overrides, expected.url)

    assert canary_deploy.roll_back(current, "by hand", wait_s=WAIT_S, progress=print) == "first"
    assert _ask(url, "s") == "first"
    served = deployment.config_of(running_content("genopt"), "genopt")
    assert served.arguments == expected.arguments
    assert deployment.read_config(current).arguments.variant.name == "next", "the run's own file stays one of the run"
    with pytest.raises(DeploymentError, match="nothing was served before"):
        canary_deploy.roll_back(current, "by hand", wait_s=WAIT_S, progress=print)


def test_a_variant_of_the_same_run_is_put_back_in_the_runs_own_file(url: str, config: Callable[..., Path], folder: Path) -> None:
    current = config("early", run="same", file="serve.yaml")
    deployment.deploy(current, wait_s=WAIT_S, progress=print)
    kept = folder / "same" / "serve-canary.yaml"
    canary_deploy.begin(config("late", run="same", file="serve-canary-next.yaml"), SLOW, kept=kept, wait_s=WAIT_S, progress=print)
    canary_deploy.promote(kept, current, wait_s=WAIT_S, progress=print)
    assert deployment.read_config(current).arguments.variant.name == "late"
    assert canary_deploy.roll_back(current, "by hand", wait_s=WAIT_S, progress=print) == _ask(url, "s") == "early"
    assert deployment.read_config(current).arguments.variant.name == "early"


def test_what_was_deployed_while_a_canary_was_under_way_is_what_comes_back(url: str, config: Callable[..., Path], folder: Path) -> None:
    kept, current = folder / "one" / "serve-canary.yaml", config("at first", run="one", file="serve.yaml")
    deployment.deploy(current, wait_s=WAIT_S, progress=print)
    canary_deploy.begin(config("canary", run="one", file="serve-canary-next.yaml"), SLOW, kept=kept, wait_s=WAIT_S, progress=print)
    deployment.deploy(config("between", run="of another run", file="serve.yaml"), wait_s=WAIT_S, progress=print)
    assert canary_deploy.promote(kept, current, wait_s=WAIT_S, progress=print).variant == _ask(url, "s") == "canary"
    assert canary_deploy.roll_back(current, "by hand", wait_s=WAIT_S, progress=print) == _ask(url, "s") == "between"


def test_a_promotion_that_was_interrupted_is_taken_back_by_the_run_whose_canary_it_is(url: str, config: Callable[..., Path], folder: Path) -> None:
    current = config("kept", run="broken off", file="serve.yaml")
    deployment.deploy(current, wait_s=WAIT_S, progress=print)
    kept = folder / "broken off" / "serve-canary.yaml"
    canary_deploy.begin(config("hasty", run="broken off", file="serve-canary-next.yaml"), SLOW, kept=kept, wait_s=WAIT_S, progress=print)
    with pytest.raises(DeploymentError, match=r"The canary is hasty of .*/broken off; name the run that it is of"):
        canary_deploy.roll_back(config("kept", run="uninvolved", file="serve.yaml"), "by hand", wait_s=WAIT_S, progress=print)
    assert CANARY in deployment.status()

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        canary_deploy.promote(kept, current, wait_s=WAIT_S, progress=interrupt)
    assert canary_deploy.roll_back(current, "by hand", wait_s=WAIT_S, progress=print) == _ask(url, "s") == "kept"
    assert CANARY not in deployment.status()
    assert deployment.read_config(current).arguments.variant.name == "kept"
