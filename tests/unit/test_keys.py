"""API keys: what is stored, who is let in, and how fast."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genopt.cli import main
from genopt.errors import DeploymentError, SpecError
from genopt.serving.binding import is_loopback, local_address, require_private
from genopt.serving.exchange import Refusal
from genopt.serving.guard import Finished, Lease
from genopt.serving.ingress import Limits, create_app
from genopt.serving.keys import RELOAD_S, KeyGate, OpenGate, add_key, read_keys, revoke_key
from genopt.serving.request_log import log_finished
from genopt.testing.scripted_backend import ANSWER, ScriptedBackend


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "genopt" / "keys.json"


def admitted(found: Lease | Refusal) -> Lease:
    assert not isinstance(found, Refusal), found
    return found


def refused(found: Lease | Refusal) -> Refusal:
    assert isinstance(found, Refusal)
    return found


def test_only_the_hash_is_stored_for_its_owner_alone(path: Path) -> None:
    made, secret = add_key(path, "alice", requests_per_minute=60)
    assert secret.startswith("gk-")
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path) == (made,)
    assert len({add_key(path, name)[1] for name in "bcd"}) == 3


def test_names_are_unique_among_valid_keys(path: Path) -> None:
    add_key(path, "alice")
    with pytest.raises(SpecError, match="already has a key"):
        add_key(path, "alice")
    assert revoke_key(path, "alice").revoked
    add_key(path, "alice")
    assert [key.revoked is None for key in read_keys(path)] == [False, True]


@pytest.mark.parametrize("bad", [{"requests_per_minute": 0}, {"concurrent": -1}])
def test_limits_must_allow_something(path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=next(iter(bad))):
        add_key(path, "alice", **bad)
    with pytest.raises(SpecError, match="name"):
        add_key(path, "")
    assert not path.exists()


def test_what_is_no_file_of_keys_is_refused(path: Path) -> None:
    with pytest.raises(SpecError, match="genopt key add"):
        read_keys(path)
    path.parent.mkdir()
    for content in ("", "{", "[]", '{"keys": [{"id": "x"}]}', '{"schema_version": 2}'):
        path.write_text(content)
        with pytest.raises(SpecError, match="not a file of keys"):
            KeyGate(path)


def test_revoking_needs_a_valid_key(path: Path) -> None:
    made, _ = add_key(path, "alice")
    with pytest.raises(SpecError, match="it has alice"):
        revoke_key(path, "bob")
    revoke_key(path, made.id)
    with pytest.raises(SpecError, match="it has none"):
        revoke_key(path, "alice")


def test_a_key_opens_and_nothing_else_does(path: Path) -> None:
    made, secret = add_key(path, "alice")
    gate = KeyGate(path)
    assert admitted(gate.admit(secret)).key == made.id
    for wrong in (None, "", secret[:-1], secret + "x", made.sha256, made.id, "gk-"):
        assert refused(gate.admit(wrong)).status == 401
    assert admitted(OpenGate().admit(None)).key is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.text())
def test_no_text_opens_by_chance(path: Path, text: str) -> None:
    if not path.exists():
        add_key(path, "alice")
    found = KeyGate(path).admit(text.encode("utf-8", "replace").decode())
    assert refused(found).code == "invalid_api_key"


def test_a_running_gate_follows_the_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    _, first = add_key(path, "alice")
    gate = KeyGate(path, clock=clock)
    _, second = add_key(path, "bob")
    assert refused(gate.admit(second)).status == 401
    clock.now += RELOAD_S
    admitted(gate.admit(second))
    revoke_key(path, "alice")
    clock.now += RELOAD_S
    assert refused(gate.admit(first)).status == 401
    path.write_text("half a fi")
    clock.now += RELOAD_S
    admitted(gate.admit(second))
    assert "former ones stay valid" in caplog.text


def test_requests_under_way_are_counted(path: Path) -> None:
    _, secret = add_key(path, "alice", concurrent=2)
    gate = KeyGate(path)
    first, _ = admitted(gate.admit(secret)), admitted(gate.admit(secret))
    turned_away = refused(gate.admit(secret))
    assert (turned_away.status, turned_away.retry_after_s) == (429, 1)
    first.end()
    admitted(gate.admit(secret))
    assert refused(gate.admit(secret)).code == "too_many_concurrent_requests"


def test_the_rate_holds_over_any_minute_and_the_wait_is_named(path: Path) -> None:
    clock = Clock()
    _, secret = add_key(path, "alice", requests_per_minute=60)
    gate, granted = KeyGate(path, clock=clock), 0
    for _ in range(600):
        clock.now += 0.1
        found = gate.admit(secret)
        granted += not isinstance(found, Refusal)
    assert 60 <= granted <= 60 + 10
    turned_away = next(found for _ in range(20) if isinstance(found := gate.admit(secret), Refusal))
    assert turned_away.retry_after_s == 1
    clock.now += 1
    admitted(gate.admit(secret))


def test_a_slow_key_may_send_one_at_once_and_gates_share_its_limits(path: Path) -> None:
    clock = Clock()
    _, secret = add_key(path, "alice", requests_per_minute=1, concurrent=3)
    gate = KeyGate(path, shares=2, clock=clock)
    admitted(gate.admit(secret)).end()
    assert refused(gate.admit(secret)).retry_after_s == 120
    clock.now += 121
    admitted(gate.admit(secret))


COMPLETIONS = "/v1/completions"
GOOD = {"model": "m", "prompt": "hi"}


def ask(app: object, method: str, path: str, headers: list[tuple[str, str]]) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            return await http.request(method, path, json=GOOD if method == "POST" else None, headers=headers)

    return asyncio.run(send())


def test_the_api_asks_for_a_key_in_the_header_and_nowhere_else(path: Path) -> None:
    made, secret = add_key(path, "alice")
    backend, ended = ScriptedBackend(*ANSWER), list[Finished]()
    app = create_app(backend=backend, gate=KeyGate(path), limits=Limits(), finished=ended.append)
    right = ("Authorization", f"Bearer {secret}")
    assert ask(app, "POST", COMPLETIONS, [right]).status_code == 200
    assert backend.asked[0][1].key == ended[0].key == made.id
    for target, headers in [
        (COMPLETIONS, []), (COMPLETIONS, [("Authorization", secret)]), (COMPLETIONS, [("Authorization", f"Basic {secret}")]),
        (f"{COMPLETIONS}?api_key={secret}&key={secret}", []), ("/v1/nothing", []), (COMPLETIONS, [("X-Api-Key", secret)]),
    ]:  # fmt: skip
        refused_ = ask(app, "POST", target, headers)
        assert (refused_.status_code, refused_.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused_.headers["WWW-Authenticate"] == "Bearer"
    assert ask(app, "POST", COMPLETIONS, [right, ("Authorization", "Bearer x")]).status_code == 400
    assert ask(app, "GET", "/openapi.json", []).status_code == 401
    assert ask(app, "GET", "/healthz", []).status_code == 200


def test_a_place_is_free_again_when_its_request_has_ended(path: Path) -> None:
    _, secret = add_key(path, "alice", concurrent=1)
    app = create_app(backend=ScriptedBackend(*ANSWER), gate=KeyGate(path), limits=Limits(), finished=lambda request: None)
    assert [ask(app, "POST", COMPLETIONS, [("Authorization", f"Bearer {secret}")]).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(("host", "private"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False),
                                               ("::", False), ("example.org", False), ("", False)])  # fmt: skip
def test_public_addresses_need_keys(host: str, private: bool) -> None:
    assert is_loopback(host) == private
    require_private(host, "keys.json")
    if private:
        require_private(host, None)
    else:
        with pytest.raises(DeploymentError, match="genopt key add"):
            require_private(host, None)
    assert [local_address(one) for one in ("0.0.0.0", "::", "10.0.0.1")] == ["127.0.0.1", "[::1]", "10.0.0.1"]


def test_the_log_tells_who_and_how_and_leaves_probes_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    log_finished(Finished(request="r", endpoint=COMPLETIONS, key="k", variant="v", status=200, code=None, stream=False))
    log_finished(Finished(request="r", endpoint="/healthz", key=None, variant="v", status=200, code=None, stream=False))
    (record,) = caplog.records
    assert (vars(record)["genopt_key"], vars(record)["genopt_status"]) == ("k", 200)


def test_the_verb_makes_lists_and_revokes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "add", "alice", "--file", str(path), "--requests-per-minute", "30", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert admitted(KeyGate(path).admit(made["key"])).key == made["id"]
    assert main(["key", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out.split()[:3] == [made["id"], "alice", "valid"]
    assert main(["key", "revoke", "alice", "--file", str(path)]) == 0
    assert main(["key", "revoke", "alice", "--file", str(path)]) == 2
    assert "has no valid key" in capsys.readouterr().err
    assert refused(KeyGate(path).admit(made["key"])).status == 401
