"""Files that are submitted and applied rather than imported: they name one Ray, ask for a token, and are valid where that can be checked here."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from genopt.spec import build, load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
VERSION = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[0]


def document(name: str, kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8"))
    return next(found for found in documents if found["kind"] == kind)


def clusters() -> dict[str, dict[str, Any]]:
    return {"cluster": document("raycluster.yaml", "RayCluster")["spec"], "job": document("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_spec_is_one(path: Path) -> None:
    assert build(load(path)).model


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_a_kubernetes_cluster_runs_our_ray_asks_for_a_token_and_measures_on_workers_alone(name: str) -> None:
    spec = clusters()[name]
    assert spec["rayVersion"] == VERSION
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [1]


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_every_pod_shares_the_store_and_workers_have_processors_of_their_own(name: str) -> None:
    spec = clusters()[name]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        store = next(item["value"] for item in container["env"] if item["name"] == "GENOPT_STORE")
        assert any(store.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for group in spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_the_job_runs_files_that_exist() -> None:
    entrypoint = document("rayjob.yaml", "RayJob")["spec"]["entrypoint"].split()
    assert entrypoint[:4] == ["python", "jobs/optimize.py", "--config", "jobs/specs/smollm2.yaml"]
    assert all((ROOT / path).is_file() for path in (entrypoint[1], entrypoint[3]))


def test_the_image_is_built_on_our_ray() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", text)) == {VERSION}
    assert all((ROOT / path).exists() for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE) for path in line.split())


def test_the_launchers_file_satisfies_rays_schema() -> None:
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    schema = json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    content = yaml.safe_load((CLUSTER / "launcher-aws.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    starts = [command for name in ("head", "worker") for command in content[f"{name}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_the_script_explains_itself() -> None:
    done = subprocess.run(["bash", str(CLUSTER / "local.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start" in done.stdout
    assert "stop" in done.stdout
    assert done.stderr == ""
