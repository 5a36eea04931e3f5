"""The served API on a real Ray and Serve, asked by the official client."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import ray
import yaml
from ray import serve

from genopt.errors import DeploymentError
from genopt.plan import Plan
from genopt.serving import client, deployment
from genopt.serving.engine_thread import EngineLoad
from genopt.serving.manifest import Scaling, autoscaling, serve_config
from genopt.testing.ports import unused_port
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

pytestmark = pytest.mark.ray

TEXT = "héllo wörld "
CONTEXT = 400
CRASH = 7
WAIT_S = 45.0


# Serve counts a request as queued until a replica has taken it, so a burst of four needs four places even while slots are free.
FOUR = Scaling(target_ongoing_requests=4, max_ongoing_requests=6, max_queued_requests=4, min_replicas=1, max_replicas=1)


def _config(
    folder: Path, *, variant: str = "fast", port: int, host: str = "127.0.0.1", model_folder: Path | None = None, scaling: Scaling = FOUR
) -> Path:
    content = serve_config(
        application="genopt", model_id="tiny", host=host, port=port, artifact=folder, model_folder=model_folder or folder / "model",
        variant=Plan(name=variant, engine="fake", options={"text": TEXT, "delay_ms": 10, "crash_token": CRASH}),
        scaling=scaling, threads=1, num_cpus=1, num_gpus=0, log_folder=folder / "logs",
    )  # fmt: skip
    path = folder / f"serve-{variant}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(embedded_ray: Path) -> Path:
    write_tiny_tokenizer(embedded_ray / "model", context=CONTEXT)
    return embedded_ray


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> deployment.Endpoint:
    said: list[str] = []
    found = deployment.deploy(_config(folder, port=unused_port()), wait_s=WAIT_S, progress=said.append)
    assert said[-1] == "genopt: running"
    return found


@pytest.fixture(scope="module")
def openai_client(endpoint: deployment.Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0, timeout=30) as found:
        yield found


def _expected(tokens: int) -> str:
    return (TEXT.encode() * tokens)[:tokens].decode(errors="ignore")


def engine_load() -> EngineLoad:
    found: EngineLoad = serve.get_deployment_handle("Engine", "genopt").load.remote().result()
    return found


def until(condition: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
    """Whether a condition of another process came true in time; there is nothing to await."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


QUESTION = [{"role": "user", "content": "Say something."}]


def test_a_chat_answer_has_text_usage_and_the_reason_of_its_end(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20)
    assert answer.choices[0].message.content == _expected(20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    assert answer.usage.prompt_tokens == len("<|user|>Say something.<|assistant|>") + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20


def test_a_stream_is_the_same_text_in_whole_characters(openai_client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(openai_client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=30, stream=True, stream_options=options))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == _expected(30)
    assert sum(1 for text in texts if text) > 5
    assert not any("\ufffd" in text for text in texts)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 30


@pytest.mark.parametrize("prompt", ["abc", ["abc"], list(b"abc")])
def test_text_completions_take_a_string_one_string_or_token_ids(openai_client: openai.OpenAI, prompt: object) -> None:
    answer = openai_client.completions.create(model="tiny", prompt=prompt, max_tokens=5)
    assert answer.choices[0].text == _expected(5)
    assert answer.usage.prompt_tokens == 3


def test_text_completions_stream(openai_client: openai.OpenAI) -> None:
    chunks = list(openai_client.completions.create(model="tiny", prompt="abc", max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == _expected(12)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_before_it(openai_client: openai.OpenAI, stream: bool) -> None:
    answer = openai_client.completions.create(model="tiny", prompt="abc", max_tokens=100, stop=["wör", "never"], stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == "héllo "
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_come_with_their_index(openai_client: openai.OpenAI, stream: bool) -> None:
    answer = openai_client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, n=2, stream=stream)
    texts = {0: "", 1: ""}
    if stream:
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in answer.choices}
        assert answer.usage.completion_tokens == 16
    assert texts == {0: _expected(8), 1: _expected(8)}


def test_the_default_length_fits_the_context(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="tiny", prompt="x" * (CONTEXT - 10))
    assert answer.usage.completion_tokens == 10


def test_log_probabilities_come_for_each_token(openai_client: openai.OpenAI) -> None:
    for stream in (False, True):
        answer = openai_client.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=8, logprobs=True, top_logprobs=1, stop=["lo"], stream=stream
        )  # fmt: skip
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        found = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
        assert "".join(entry.token for entry in found).replace("\ufffd", "") == "hllo"
        assert all(entry.logprob == 0 and entry.top_logprobs[0].token == entry.token for entry in found)
    text = openai_client.completions.create(model="tiny", prompt="abc", max_tokens=3, logprobs=1).choices[0].logprobs
    assert (text.tokens[0], text.token_logprobs, text.text_offset) == ("h", [0.0] * 3, [0, 1, 2])


def test_several_prompts_are_answered_in_order(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="tiny", prompt=["abc", "de"], max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)


def test_a_request_keeps_its_id(endpoint: deployment.Endpoint) -> None:
    for body in ({"model": "tiny", "prompt": "a", "max_tokens": 1}, {"model": "other"}):
        answer = httpx.post(f"{endpoint.url}/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
        assert answer.headers.get_list("X-Request-Id") == ["mine-1"]
    assert httpx.get(f"{endpoint.url}/healthz").headers["X-Request-Id"]


def test_models_health_and_the_variant_header(openai_client: openai.OpenAI, endpoint: deployment.Endpoint) -> None:
    assert [model.id for model in openai_client.models.list()] == ["tiny"]
    assert openai_client.models.retrieve("tiny").id == "tiny"
    for path in ("/healthz", "/readyz", "/v1/models"):
        answer = httpx.get(endpoint.url + path)
        assert (answer.status_code, answer.headers["X-Genopt-Variant"]) == (200, "fast")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other", "prompt": "a"}, 404, "model"),
        ({"model": "tiny", "prompt": "x" * CONTEXT}, 413, "prompt"),
        ({"model": "tiny", "prompt": "x", "max_tokens": CONTEXT}, 400, "max_tokens"),
        ({"model": "tiny", "prompt": [999]}, 400, "prompt"),
        ({"model": "tiny", "prompt": ""}, 400, "prompt"),
        ({"model": "tiny", "prompt": "x", "temperature": -1}, 400, "temperature"),
        ({"model": "tiny"}, 400, "prompt"),
        (["not", "an object"], 400, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_refused_in_openais_shape(endpoint: deployment.Endpoint, body: object, status: int, param: str | None, stream: bool) -> None:
    sent = {**body, "stream": stream} if isinstance(body, dict) else body
    answer = httpx.post(f"{endpoint.url}/v1/completions", json=sent)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "Traceback" not in answer.text


def test_more_messages_than_the_context_has_tokens_are_refused_before_they_are_rendered(endpoint: deployment.Endpoint) -> None:
    messages = [{"role": "user", "content": ""}] * (CONTEXT + 1)
    answer = httpx.post(f"{endpoint.url}/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "messages")
    assert f"has {CONTEXT + 1} messages" in answer.json()["error"]["message"]


def test_an_unknown_path_and_a_broken_body_have_openais_shape(endpoint: deployment.Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/v1/nothing").json()["error"]["code"] == "not_found"
    broken = httpx.post(f"{endpoint.url}/v1/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.json()["error"]["code"] == "invalid_json"


def test_parallel_requests_share_a_batch(openai_client: openai.OpenAI) -> None:
    before = engine_load().batch_sizes
    started = threading.Barrier(4)

    def one(_: int) -> str:
        started.wait()
        chunks = openai_client.completions.create(model="tiny", prompt="abc", max_tokens=60, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [_expected(60)] * 4
    after = engine_load().batch_sizes
    steps = {size: after[size] - before.get(size, 0) for size in after}
    assert sum(size * count for size, count in steps.items()) == 4 * 60
    assert steps[4] > sum(steps.values()) / 2
    assert max(steps) == 4


def test_a_late_request_is_answered_while_an_early_one_runs(openai_client: openai.OpenAI) -> None:
    long = openai_client.completions.create(model="tiny", prompt="abc", max_tokens=CONTEXT - 10, stream=True)
    next(iter(long))
    assert openai_client.completions.create(model="tiny", prompt="abc", max_tokens=5).choices[0].text == _expected(5)
    assert engine_load().running == 1
    long.close()
    assert until(lambda: engine_load().running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_generation_stops_when_its_caller_goes_away(endpoint: deployment.Endpoint, stream: bool) -> None:
    before = engine_load().tokens
    body = {"model": "tiny", "prompt": "abc", "max_tokens": CONTEXT - 10, "stream": stream}
    with httpx.Client(base_url=endpoint.url) as http, http.stream("POST", "/v1/completions", json=body) if stream else contextlib.nullcontext():
        if not stream:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=body, timeout=0.5)
    assert until(lambda: engine_load().running == 0, 0.5 * CONTEXT * 0.010)
    assert engine_load().tokens - before < CONTEXT / 2


def test_more_than_fits_the_queue_is_turned_away_with_retry_after(endpoint: deployment.Endpoint) -> None:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 100}
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{endpoint.url}/v1/completions", json=body, timeout=60), range(24)))
    turned_away = [answer for answer in answers if answer.status_code == 429]
    assert turned_away
    assert all(int(answer.headers["Retry-After"]) >= 1 and answer.json()["error"]["type"] == "rate_limit_error" for answer in turned_away)
    assert {answer.status_code for answer in answers} == {200, 429}


def test_our_own_client_streams_an_answer(endpoint: deployment.Endpoint) -> None:
    pieces: list[str] = []
    answer = client.ask(endpoint.url, "Say something.", model="tiny", max_tokens=20, on_text=pieces.append)
    assert answer == "".join(pieces) == _expected(20)
    with pytest.raises(DeploymentError, match="not served here"):
        client.ask(endpoint.url, "Say something.", model="other", max_tokens=20, on_text=pieces.append)


def test_a_public_address_a_taken_port_and_another_port_are_refused(endpoint: deployment.Endpoint, folder: Path) -> None:
    for config, reason in [
        (_config(folder, variant="public", port=8000, host="0.0.0.0"), "API key"),
        (_config(folder, variant="elsewhere", port=unused_port()), "another port"),
    ]:
        with pytest.raises(DeploymentError, match=reason):
            deployment.deploy(config, wait_s=5, progress=lambda text: None)


def test_who_asks_an_engine_that_has_died_waits_for_the_next_one(endpoint: deployment.Endpoint) -> None:
    (replica,) = [one for one in psutil.process_iter(["cmdline"]) if "ServeReplica:genopt:Engine" in " ".join(one.info["cmdline"] or ())]
    (engine,) = replica.children()
    engine.kill()
    answer = httpx.post(f"{endpoint.url}/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 5}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == _expected(5)


def test_what_engines_die_of_is_refused_in_the_end_and_their_replica_replaced(endpoint: deployment.Endpoint, openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="engine failed") as failure:
        openai_client.completions.create(model="tiny", prompt=[CRASH], max_tokens=5)
    assert failure.value.status_code == 503
    deadline = time.monotonic() + WAIT_S
    while True:
        answer = httpx.post(f"{endpoint.url}/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 5}, timeout=WAIT_S)
        healthy = answer.status_code == 200 and deployment.status()["genopt"]["status"] == "RUNNING"
        if healthy or time.monotonic() > deadline:
            break
        threading.Event().wait(0.25)
    assert answer.json()["choices"][0]["text"] == _expected(5), json.dumps(deployment.status())


def test_an_update_fails_no_request(endpoint: deployment.Endpoint, folder: Path) -> None:
    done = threading.Event()

    def ask(stream: bool) -> list[tuple[int, str, bool]]:
        found = []
        with httpx.Client(base_url=endpoint.url, timeout=WAIT_S) as http:
            while not done.is_set():
                answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 20, "stream": stream})
                found.append((answer.status_code, answer.headers["X-Genopt-Variant"], answer.text.endswith("[DONE]\n\n") or not stream))
        return found

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, stream) for stream in (False, True)]
        try:
            deployment.deploy(_config(folder, variant="newer", port=httpx.URL(endpoint.url).port or 0), wait_s=WAIT_S, progress=lambda text: None)
            assert until(lambda: set(deployment.status()["genopt"]["deployments"]["Engine"]["replicas"]) == {"RUNNING"})
        finally:
            done.set()
        found = [one for future in asking for one in future.result()]
    assert {(status, whole) for status, _, whole in found} == {(200, True)}
    assert {variant for _, variant, _ in found} == {"fast", "newer"}


def test_prometheus_is_told_of_requests_tokens_times_and_the_engine(endpoint: deployment.Endpoint) -> None:
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    wanted = ["requests_total", "completion_tokens_total", "ttft_seconds_bucket", "tpot_seconds_bucket", "engine_running", "engine_tokens_total",
              "engine_steps_total"]  # fmt: skip
    assert until(lambda: all(f"ray_genopt_{name}{{" in httpx.get(address).text for name in wanted))
    line = next(line for line in httpx.get(address).text.splitlines() if line.startswith("ray_genopt_requests_total{") and 'status="429"' in line)
    assert 'code="over_capacity"' in line
    assert 'application="genopt"' in line


def test_undeploying_frees_the_port_and_a_foreign_listener_is_noticed(endpoint: deployment.Endpoint, folder: Path) -> None:
    assert deployment.status()["genopt"]["status"] == "RUNNING"
    said: list[str] = []
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", timeout=30) as caller:
        stream = caller.completions.create(model="tiny", prompt="go on", max_tokens=CONTEXT - 20, stream=True)
        texts = [next(stream).choices[0].text]
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(deployment.undeploy, progress=said.append)
            texts += [chunk.choices[0].text for chunk in stream]
            assert ending.result()
    assert "".join(texts) == _expected(CONTEXT - 20), "what is under way is answered to its end"
    assert said[0].startswith("waiting for answers that are under way")
    assert not deployment.undeploy()
    assert deployment.status() == {}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = _config(folder, variant="taken", port=taken.getsockname()[1])
        with pytest.raises(DeploymentError, match="is taken"):
            deployment.deploy(config, wait_s=5, progress=lambda text: None)


def test_a_variant_that_cannot_start_is_a_deployment_error_with_its_cause(folder: Path) -> None:
    config = _config(folder, variant="broken", port=unused_port(), model_folder=folder / "nothing")
    with pytest.raises(DeploymentError, match=r"has no tokenizer\.json"):
        deployment.deploy(config, wait_s=WAIT_S, progress=lambda text: None)
    assert deployment.undeploy()


def test_one_place_is_enough_for_eight_prompts_with_two_choices_each(folder: Path) -> None:
    deployment.undeploy()
    endpoint = deployment.deploy(_config(folder, variant="narrow", port=unused_port(), scaling=autoscaling({})), wait_s=WAIT_S, progress=print)
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0, timeout=30) as caller:
        answer = caller.completions.create(model="tiny", prompt=["abc"] * 8, n=2, max_tokens=5)
        chunks = list(caller.completions.create(model="tiny", prompt=["abc"] * 8, n=2, max_tokens=5, stream=True))
    assert {choice.index: choice.text for choice in answer.choices} == dict.fromkeys(range(16), _expected(5))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (24, 80)
    streamed = {index: "".join(chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index) for index in range(16)}
    assert streamed == dict.fromkeys(range(16), _expected(5))
    assert deployment.undeploy()
