"""What must agree between the nodes of a cluster: each difference is found, has its remedy, and equal nodes have none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from genopt.console.diagnosis import print_diagnosis
from genopt.distributed import agreement
from genopt.distributed.agreement import Clock, Finding
from genopt.distributed.diagnosis import Diagnosis, Examined
from genopt.distributed.probe import NodeFacts, Note, read_notes, remove_notes, write_note

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "genopt": "0.1.0+abcdef1", "torch": "2.13.0+cpu"}
GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 10**9, "compute_capability": "9.0", "driver": "570.124"}


def facts(*, gpus: int = 0, environments: dict[str, str] | None = None, **versions: str) -> NodeFacts:
    hardware: dict[str, Any] = {"cores": 8, "memory_available_bytes": 64 * 10**9, "gpus": [GPU] * gpus}
    free = dict.fromkeys(("store", "temporary", "shared_memory"), 10**11)
    return NodeFacts(
        versions=VERSIONS | versions, hardware=hardware, free_bytes=free, environments=environments or {}, token=True, problems=()
    )  # fmt: skip


def only(findings: Any) -> Finding:
    (found,) = findings
    assert isinstance(found, Finding)
    assert found.remedy.endswith(".")
    return found


def test_equal_nodes_agree_and_builds_for_other_devices_count_as_equal() -> None:
    assert list(agreement.versions(VERSIONS, {"one": facts(), "two": facts(torch="2.13.0+cu130")})) == []


@pytest.mark.parametrize(
    ("name", "version"), [("python", "3.11.9"), ("ray", "2.59.0"), ("genopt", "0.1.0+1234567"), ("torch", "2.12.0+cpu"), ("transformers", "5.1.0")]
)
def test_a_version_that_differs_is_found(name: str, version: str) -> None:
    found = only(agreement.versions(VERSIONS, {"one": facts(), "two": facts(**{name: version})}))
    assert found.nodes == ("two",)
    assert f"{name} is {version}" in found.what


def test_the_same_fault_of_several_nodes_is_one() -> None:
    found = only(agreement.merged(list(agreement.versions(VERSIONS, {name: facts(ray="2.59.0") for name in ("one", "two")}))))
    assert found.nodes == ("one", "two")


def test_gpus_that_do_not_answer_are_found() -> None:
    nodes = {"one": facts(gpus=1), "two": facts(gpus=0), "three": facts(gpus=2)}
    assert only(agreement.devices({"one": 1, "two": 1, "three": 1}, nodes)).nodes == ("two",)


def test_an_environment_is_of_use_where_every_node_has_it() -> None:
    nodes = {
        "one": facts(environments={"llamacpp": "built", "openvino": "absent"}),
        "two": facts(environments={"llamacpp": "absent", "openvino": "absent"}),
    }
    found = only(agreement.environments(nodes))
    assert found.nodes == ("two",)
    assert "genopt env build llamacpp" in found.remedy
    assert only(agreement.environments({"one": facts(environments={"llamacpp": "outdated"})})).nodes == ("one",)
    built = facts(environments={"llamacpp": "built"})
    differ = {name: built.model_copy(update={"engines": {"llamacpp": digest}}) for name, digest in (("one", "a"), ("two", "b"), ("three", "a"))}
    found = only(agreement.environments(differ))
    assert (found.nodes, "other versions than on one" in found.what) == (("two",), True)


def test_a_clock_is_wrong_when_the_round_trip_cannot_explain_it() -> None:
    clocks = {
        name: Clock(ahead_s=ahead, uncertainty_s=uncertainty)
        for name, ahead, uncertainty in (("good", 0.2, 0.01), ("far", 2.0, 1.5), ("bad", -1.5, 0.1))
    }  # fmt: skip
    found = only(agreement.clocks(clocks))
    assert found.nodes == ("bad",)
    assert "1.5 s behind" in found.what


def test_nodes_that_see_another_store_are_found() -> None:
    written = {"driver": Note(sha256="d"), "one": Note(sha256="a"), "two": Note(sha256="b")}
    same = {name: dict(written) for name in written}
    assert list(agreement.storage("/store", written, same)) == []
    apart = {**same, "two": {"driver": Note(), "one": Note(), "two": Note(sha256="b")}}
    found = only(agreement.storage("/store", written, apart))
    assert (found.nodes, "driver and one" in found.what) == (("two",), True)


def test_a_node_that_cannot_use_the_store_is_named_once() -> None:
    written = {"one": Note(sha256="a"), "two": Note(error="No space is left; free some.")}
    read = {"one": {"one": Note(sha256="a"), "two": Note()}, "two": {"one": Note(error="gone"), "two": Note(error="gone")}}
    assert only(agreement.storage("/store", written, read)) == Finding(
        nodes=("two",), what="the store cannot be used", remedy="No space is left; free some."
    )  # fmt: skip
    broken = {"one": {"one": Note(sha256="a")}, "two": {"one": Note(error="It does not answer.")}}
    assert only(agreement.storage("/store", {"one": Note(sha256="a"), "two": Note(sha256="b")}, broken)).nodes == ("two",)


def test_what_is_written_to_a_folder_is_read_there_and_removed(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    written = write_note(str(tmp_path / "store"), "session/0")
    assert written.sha256
    assert read_notes(str(tmp_path / "store"), ["session/0", "session/1"]) == {"session/0": written, "session/1": Note()}
    remove_notes(str(tmp_path / "store"), ["session/0"])
    assert read_notes(str(tmp_path / "store"), ["session/0"]) == {"session/0": Note()}
    assert "--store" in write_note(str(tmp_path / "file" / "store"), "session/0").error


@pytest.mark.parametrize(
    ("token", "address", "dashboard", "said"),
    [
        (True, "10.0.0.1", "10.0.0.1:8265", ""), (False, "127.0.0.2", "127.0.0.1:8265", ""), (False, "127.0.0.1", "0.0.0.0:8265", "dashboard"),
        (False, "10.0.0.1", "127.0.0.1:8265", "no token"), (False, "10.0.0.1", "", "no token"),
    ],
)  # fmt: skip
def test_strangers_reach_nothing(token: bool, address: str, dashboard: str, said: str) -> None:
    found = list(agreement.access(token, [address], dashboard))
    assert [said in one.what for one in found] == ([True] if said else [])
    assert all("ray get-auth-token" in one.remedy for one in found)


def test_ports_that_are_closed_are_named() -> None:
    found = only(agreement.ports({"one": [], "two": [("one", ("10.0.0.1", 6380))]}))
    assert found.nodes == ("two",)
    assert "one at 10.0.0.1:6380" in found.what


def test_the_table_has_a_line_per_node_and_one_per_fault() -> None:
    nodes = (Examined(name="one", facts=facts(gpus=1), clock=Clock(ahead_s=0.004, uncertainty_s=0.001)), Examined(name="two"))
    finding = Finding(nodes=("two",), what="it does not answer", remedy="Restart it.")
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    print_diagnosis(Diagnosis(cluster="10.0.0.1:6379", token=False, store="/store", nodes=nodes, findings=(finding,)), console)
    text = stream.getvalue()
    assert "NVIDIA H100 80GB HBM3 sm 9.0, driver 570.124" in text
    assert "+4 ms" in text
    assert "✗ two: it does not answer: Restart it." in text
    assert "asks for no token" in text
    print_diagnosis(Diagnosis(store="/store", nodes=nodes[:1], findings=()), console)
    assert "✓ nothing to mend" in stream.getvalue()
