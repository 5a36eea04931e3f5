"""Fills the templates of clusters from a few values; with the default ones they are the files under `cluster/` and `serving/`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from typing import Annotated, ClassVar

from jinja2 import Environment, StrictUndefined
from pydantic import Field, StringConstraints, ValidationError

from genopt.errors import SpecError
from genopt.plan import Record

Word = Annotated[str, StringConstraints(pattern=r"^[\w./:@%+=-]+$")]
"""What can stand in YAML, a shell and a URI as it is."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A name in Kubernetes and in clouds."""
DRAIN_S = 660
"""Longer than the longest answer, so that a replica ends what it has begun."""
JOB_SLACK_S = 3000
"""What pulling images and scheduling may take beside a run's budget."""


class Values(Record):
    """What all clusters have.

    Attributes:
        name: Of the cluster and what belongs to it.
        image: Built from cluster/Dockerfile, in a registry that the nodes can pull from.
        store: Where artifacts are: a folder of the shared volume, or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, of which each node then keeps
            a cache on its own disk; runs name the bucket with --store.
        compressing: Most nodes that build candidates and measure nothing; they start when builds wait, and may be reclaimed.
        gpus: GPUs of a node; 0 runs on processors.
    """

    files: ClassVar[tuple[str, ...]] = ()
    """Names of the templates, below `cluster/` or where the path says."""

    name: Name = "genopt"
    image: Word = "IMAGE"
    store: Word = "/genopt/store"
    compressing: int = Field(default=2, ge=0)
    gpus: int = Field(default=1, ge=0)


class KubeRay(Values):
    """A RayCluster that stays, a RayJob for one run, and a RayService that serves a variant.

    Attributes:
        claim: A PersistentVolumeClaim that all pods can write (ReadWriteMany): it keeps models and runs.
        secret: A Secret whose keys become environment variables of the pods, such as credentials of the store's bucket; empty for none.
        spot: Label of the nodes that the provider may reclaim, as KEY=VALUE; empty for any node.
        measuring: Equal nodes that measure.
        cpus: Processors of a node's pod; where it serves, all but one are the engine's, and half of a single one.
        memory: Memory of a node's pod.
        model: What the RayJob optimizes.
        budget_s: Its budget in seconds.
        run: Name of its run's folder.
        model_id: Name under which the RayService serves.
        engine: Engine of the variant, and below its folders on the claim.
        artifact: The variant's.
        model_folder: The model's.
    """

    files = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")

    claim: Word = "CLAIM"
    secret: Name | Annotated[str, StringConstraints(pattern="^$")] = ""
    spot: Word | Annotated[str, StringConstraints(pattern="^$")] = "cloud.google.com/gke-spot=true"
    measuring: int = Field(default=1, ge=1)
    cpus: int = Field(default=8, ge=1)
    memory: Word = "64Gi"
    model: Word = "smollm2-135m"
    budget_s: int = Field(default=600, ge=30)
    run: Name = "smollm2"
    model_id: Word = "MODEL_ID"
    engine: Word = "ENGINE"
    artifact: Word = "ARTIFACT"
    model_folder: Word = "MODEL"


class Aws(Values):
    """GPU nodes on AWS, brought up by `ray up`.

    Attributes:
        region: Region.
        subnet: A private subnet there, with a way out (NAT) and one to reach it (VPN or bastion).
        ami: An image with NVIDIA's driver and Docker for that region, such as the Deep Learning Base GPU AMI.
        file_system: An EFS file system, mounted by all nodes: it keeps models and runs.
        instance: Type of the nodes that build and measure.
    """

    files = ("launcher-aws.yaml",)

    region: Word = "us-west-2"
    subnet: Word = "SUBNET"
    ami: Word = "AMI"
    file_system: Word = "FILE_SYSTEM"
    instance: Word = "g6e.4xlarge"


class Gcp(Values):
    """GPU nodes on Google Cloud, brought up by `ray up`.

    Attributes:
        project: Project.
        region: Region.
        zone: Zone of the region.
        subnet: A subnet there with a way out (Cloud NAT) and one to reach it (VPN or IAP).
        disk_image: A disk image with NVIDIA's driver and Docker, such as a Deep Learning VM's.
        file_system: Filestore's address with the share, as HOST:/SHARE, mounted by all nodes: it keeps models and runs.
        machine: Type of the nodes that build and measure; its GPUs come with it.
        cpus: Processors of that type; like `gpus` they must be the machine's, as Ray looks them up on AWS only.
    """

    files = ("launcher-gcp.yaml",)

    project: Word = "PROJECT"
    region: Word = "us-central1"
    zone: Word = "us-central1-a"
    subnet: Word = "SUBNET"
    disk_image: Word = "DISK_IMAGE"
    file_system: Word = "FILE_SYSTEM:/genopt"
    machine: Word = "g2-standard-16"
    cpus: int = Field(default=16, ge=1)


class Compose(Values):
    """Two nodes as containers of this machine.

    Attributes:
        cpus: Processors of each.
        port: Where the dashboard listens on 127.0.0.1.
    """

    files = ("compose.yaml",)

    image: Word = "genopt:cpu"
    gpus: int = Field(default=0, ge=0, le=0)
    cpus: int = Field(default=2, ge=1)
    port: int = Field(default=8265, ge=1, le=65535)


KINDS: Mapping[str, type[Values]] = {"kuberay": KubeRay, "aws": Aws, "gcp": Gcp, "compose": Compose}


def values_of(kind: str, given: Mapping[str, str]) -> Values:
    """The values of a kind of cluster with the given ones laid over the defaults.

    Args:
        kind: One of `KINDS`.
        given: Values as text.

    Raises:
        SpecError: No such kind or key, or a value that does not fit.
    """
    if kind not in KINDS:
        raise SpecError(f"{kind!r} is no kind of cluster; choose one of {', '.join(KINDS)}.")
    model = KINDS[kind]
    unknown = sorted(set(given) - set(model.model_fields))
    if unknown:
        raise SpecError(f"{kind} has no value {unknown[0]!r}; it has {', '.join(model.model_fields)}.")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(
            f"The value of {first['loc'][0]} cannot be {first['input']!r} ({first['msg']}); write for example --set image=REGISTRY/genopt:gpu."
        ) from None


def render(values: Values) -> dict[str, str]:
    """The files of a kind of cluster, by name."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - it makes YAML, of values that are checked
    )  # fmt: skip
    folder = resources.files(__package__).joinpath("templates")
    facts = {"ray_version": metadata.version("ray"), "drain_s": DRAIN_S, "job_slack_s": JOB_SLACK_S}
    made = {}
    for name in values.files:
        template = environment.from_string(folder.joinpath(f"{name}.jinja").read_text(encoding="utf-8"))
        made[name] = template.render(**values.model_dump(), **facts)
    return made


def missing(values: Values) -> list[str]:
    """Keys of values that only the user knows and has not given: their defaults stand in capitals."""
    return [key for key, value in values.model_dump().items() if isinstance(value, str) and value.partition(":")[0].replace("_", "").isupper()]
