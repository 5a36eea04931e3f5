"""Files that are submitted and applied rather than imported: they name one Ray, ask for a token, and are valid where that can be checked here."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from genopt.cli import main
from genopt.distributed.cluster import HOST_LABEL, ROLE_LABEL
from genopt.distributed.scaling import NODES
from genopt.manifests.render import KINDS, render, values_of
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


def policy(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one["kind"] == "NetworkPolicy")["spec"]
    return found


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def launcher(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / f"launcher-{name}.yaml").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_files_are_what_render_makes_of_the_default_values(kind: str) -> None:
    for name, text in render(values_of(kind, {})).items():
        folder = ROOT / "serving" if name == "rayservice.yaml" else CLUSTER
        assert (folder / name).read_text(encoding="utf-8") == text, f"run: genopt cluster render {kind} --force"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_values_make_other_files_that_are_still_yaml(kind: str, tmp_path: Path) -> None:
    chosen = ["--set", "image=registry.example.com/genopt:1", "--set", "store=s3://bucket/prefix", "--set", "compressing=0"]
    assert main(["cluster", "render", kind, "--out", str(tmp_path), *chosen]) == 0
    for path in tmp_path.iterdir():
        content = json.dumps(list(yaml.safe_load_all(path.read_text(encoding="utf-8"))))
        assert "registry.example.com/genopt:1" in content
        assert '"IMAGE"' not in content
        assert "compress" not in content
    assert main(["cluster", "render", kind, "--out", str(tmp_path), *chosen]) == 2, "what is there is not replaced"
    assert main(["cluster", "render", kind, "--out", str(tmp_path), "--force"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mesos"], "choose one of kuberay, aws, gcp, compose"), (["kuberay", "--set", "colour=red"], "it has name, image, store"),
        (["aws", "--set", "image=a b"], "The value of image"), (["aws", "--set", "image=a\nb: c"], "The value of image"),
        (["kuberay", "--set", "name=Big_Name"], "The value of name"), (["kuberay", "--set", "measuring=0"], "The value of measuring"),
        (["compose", "--set", "port"], "no KEY=VALUE pair"), (["compose", "--set", "gpus=1"], "The value of gpus"),
    ],
)  # fmt: skip
def test_bad_values_are_usage_errors(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "render", *words, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_still_to_be_given_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "render", "gcp", "--out", str(tmp_path), "--set", "image=genopt:gpu"]) == 0
    said = capsys.readouterr().err
    assert all(f"--set {key}=" in said for key in ("project", "subnet", "disk_image", "file_system"))
    assert "--set image=" not in said


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_a_kubernetes_cluster_runs_our_ray_asks_for_a_token_and_measures_on_workers_that_stay(name: str) -> None:
    spec = clusters()[name]
    assert spec["rayVersion"] == VERSION
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    roles = {group["labels"]["genopt/role"]: group for group in spec["workerGroupSpecs"]}
    head = {item["name"]: item["value"] for item in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    assert roles["measure"]["maxReplicas"] == 1
    assert str(roles["measure"]["minReplicas"] or head[NODES]) == "1", "they are there, or a run brings them up"
    assert "nodeSelector" not in roles["measure"]["template"]["spec"]


def test_what_builds_comes_from_nodes_that_may_be_reclaimed_and_goes_when_nothing_waits() -> None:
    spec = clusters()["cluster"]
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    group = next(group for group in spec["workerGroupSpecs"] if group["labels"]["genopt/role"] == "compress")
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 2)
    assert group["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_every_pod_shares_the_store_and_workers_have_processors_of_their_own(name: str) -> None:
    spec = clusters()[name]
    for template in pods(spec):
        pod = template["spec"]
        [container] = pod["containers"]
        store = next(item["value"] for item in container["env"] if item["name"] == "GENOPT_STORE")
        assert any(store.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for group in spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("path", [CLUSTER / "rayjob.yaml", ROOT / "serving" / "rayservice.yaml"], ids=lambda path: path.stem)
def test_a_policy_selects_every_pod_and_lets_in_the_operator(path: Path) -> None:
    spec = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))["spec"]
    rules = policy(path)
    selected = rules["podSelector"]["matchLabels"].items()
    assert all(selected <= pod["metadata"]["labels"].items() for pod in pods(spec.get("rayClusterSpec") or spec["rayClusterConfig"]))
    assert rules["policyTypes"] == ["Ingress"]
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    ports = [
        [port["port"] for port in rule["ports"]]
        for rule in rules["ingress"] if operator in [source["podSelector"].get("matchLabels") for source in rule["from"]]
    ]  # fmt: skip
    assert len(ports) == 1
    assert 8265 in ports[0]


def test_the_clusters_policy_lets_in_nobody_else() -> None:
    (rule,) = policy(CLUSTER / "raycluster.yaml")["ingress"]
    assert rule == {"from": [{"podSelector": {"matchLabels": {"ray.io/cluster": "genopt"}}}]}


def test_secrets_come_from_kubernetes_and_stand_in_no_file() -> None:
    made = render(values_of("kuberay", {"secret": "bucket-keys"}))
    for name in ("raycluster.yaml", "rayjob.yaml"):
        spec = next(yaml.safe_load_all(made[name]))["spec"]
        for pod in pods(spec.get("rayClusterSpec") or spec):
            assert pod["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
    names = re.compile(r"(?i)(secret_access_key|password|RAY_AUTH_TOKEN=[^$])")
    assert not [path for path in CLUSTER.iterdir() if names.search(path.read_text(encoding="utf-8"))]


def test_the_job_runs_a_script_that_exists() -> None:
    entrypoint = document("rayjob.yaml", "RayJob")["spec"]["entrypoint"].split()
    assert entrypoint[:3] == ["python", "jobs/optimize.py", "smollm2-135m"]
    assert (ROOT / entrypoint[1]).is_file()
    assert "--store s3://bucket/x" in render(values_of("kuberay", {"store": "s3://bucket/x"}))["rayjob.yaml"]


def test_the_image_is_built_on_our_ray_with_what_is_pinned() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", text)) == {VERSION}
    assert all((ROOT / path).exists() for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE) for path in line.split())
    assert "--constraint constraints.txt" in text


def test_the_image_keeps_to_the_rules_of_images() -> None:
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {step for step, _ in steps} <= {"ARG", "FROM", "USER", "RUN", "WORKDIR", "COPY", "ENV"}, "nothing is fetched by ADD"
    assert [rest for step, rest in steps if step == "USER"][-1] == "ray"
    for step, rest in steps:
        if step == "RUN" and "apt-get install" in rest:
            assert all(part in rest for part in ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"))
        if step == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest
        if step in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|secret|password|key", rest)


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_launchers_file_satisfies_rays_schema_and_is_closed(name: str) -> None:
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    schema = json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    content = launcher(name)
    jsonschema.validate(content, schema)
    starts = [command for role in ("head", "worker") for command in content[f"{role}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert content["provider"]["use_internal_ips"] is True
    assert list(content["file_mounts"]) == ["/home/ray/.ray/auth_token"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_launcher_measures_on_nodes_that_stay_and_builds_on_spot_ones(name: str) -> None:
    types = launcher(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    spot = {role: "spot" in json.dumps(types[role]["node_config"]).lower() for role in ("measure", "compress")}
    assert spot == {"measure": False, "compress": True}
    assert {role: types[role]["labels"] for role in spot} == {role: {ROLE_LABEL: role} for role in spot}
    assert (types["measure"]["min_workers"], types["compress"]["min_workers"]) == (1, 0)
    assert launcher(name)["max_workers"] == sum(types[role]["max_workers"] for role in spot)


@pytest.mark.parametrize(("chosen", "offered"), [({}, {"CPU": 16, "GPU": 1}), ({"cpus": "32", "gpus": "0"}, {"CPU": 32})])
def test_googles_autoscaler_starts_a_node_that_builds_when_a_build_waits(chosen: dict[str, str], offered: dict[str, int]) -> None:
    content = yaml.safe_load(render(values_of("gcp", chosen))["launcher-gcp.yaml"])
    node_types = AutoscalingConfig(content, skip_content_hash=True).get_node_type_configs()
    build = ResourceRequestUtil.make(offered, label_selectors=[[(ROLE_LABEL, LabelSelectorOperator.LABEL_OPERATOR_IN, ["compress"])]])
    waiting = ResourceRequestUtil.group_by_count([build])
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True, node_type_configs=node_types, max_num_nodes=content["max_workers"] + 1, resource_requests=waiting
        )
    )  # fmt: skip
    assert reply.infeasible_resource_requests == []
    assert {request.instance_type: request.count for request in reply.to_launch} == {"measure": 1, "compress": 1}


def test_composes_nodes_are_two_of_one_machine_and_only_it_reaches_them() -> None:
    content = yaml.safe_load((CLUSTER / "compose.yaml").read_text(encoding="utf-8"))
    services = content["services"]
    assert list(services) == ["head", "worker"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in services["worker"]
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert f"--labels {HOST_LABEL}=genopt" in service["command"]
        assert service["cap_drop"] == ["ALL"]
        assert service["volumes"] == ["genopt:/genopt"]


def test_composes_containers_can_read_the_token_and_write_the_volume(tmp_path: Path) -> None:
    text = (CLUSTER / "compose.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert content["secrets"] == {"token": {"file": "./secret/token"}}
    assert {tuple(service["secrets"]) for service in content["services"].values()} == {("token",)}, "Compose mounts a file with its owner and mode"
    (command,) = re.findall(r"^#   (mkdir .+ chmod .+?)  +#", text, re.MULTILINE)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    token = tmp_path / "secret" / "token"
    assert (stat.S_IMODE(token.parent.stat().st_mode), stat.S_IMODE(token.stat().st_mode)) == (0o700, 0o444)
    assert re.fullmatch("[0-9a-f]{64}", token.read_text(encoding="ascii"))
    before, made, after = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").partition("RUN mkdir /genopt && chown ray:users /genopt\n")
    assert made, "a new volume takes over the owner of the image's folder"
    assert "USER root" in before
    assert after.startswith("USER ray\n")


def test_the_script_explains_itself() -> None:
    done = subprocess.run(["bash", str(CLUSTER / "local.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start" in done.stdout
    assert "stop" in done.stdout
    assert done.stderr == ""
