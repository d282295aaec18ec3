"""RayJobs: KubeRay's own schema takes them, Ray's autoscaler reads them, no secret is in them.

The CRDs are read from $KUBERAY_CRDS, else from the folder beside the checkout.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from openapi_schema_validator import OAS30Validator
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from typer.testing import CliRunner

from orchestration.cli.render import as_yaml, render, run_name
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import load_job
from orchestration.manifests.kuberay import MAX_NAME, config_map, ray_job
from orchestration.manifests.nodes import CLOUDS

ROOT = Path(__file__).resolve().parents[4]
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT / ".." / "shared" / "reference" / "kuberay"))
LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")
MARKER = "a-secret-value-that-travels-nowhere"
SMALLEST = """
name: mine
cluster: {address: auto}
data: {train: "s3://data/mine/train", val: "s3://data/mine/val", global_batch_size: 1024}
model: {num_classes: 10}
schedule: {epochs: 2}
storage: {region: us-east-1}
tracking: {uri: "http://mlflow:5000"}
"""
JOBS = {
    "cpu": ["cluster.accelerators=CPU:2"],
    "h100": ["cluster.accelerators=H100:8", "cluster.num_nodes=4", "cluster.cpus_per_worker=14"],
    "elastic": ["cluster.accelerators=H100:8", "cluster.num_nodes={min: 1, max: 4}"],
    "spot": ["cluster.accelerators=A100-80G:8", "cluster.use_spot=true"],
    "alternatives": ["cluster.accelerators=[H100:8,A100:8]", "cluster.num_nodes=2"],
    "secrets": ["cluster.secrets=[AWS_SECRET_ACCESS_KEY,MLFLOW_TRACKING_PASSWORD]"],
}
AMD = ["cluster.accelerators=MI300X:8"]


def job_of(tmp_path: Path, overrides: list[str]) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(SMALLEST)
    return load_job(path, overrides)


def rendered(job: Job, cloud: str = "gke", **options: Any) -> dict[str, Any]:
    return ray_job(job, cloud=cloud, image="r/i:1", name=run_name(job), secret="mine", **options)


def tightened(schema: Any) -> Any:
    """The CRD's schema as an API server with strict field validation reads it."""
    if isinstance(schema, list):
        return [tightened(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: tightened(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    loose = made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and not loose:
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def validator() -> OAS30Validator:
    path = CRDS / "ray.io_rayjobs.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRDs in {CRDS}: set KUBERAY_CRDS to their folder")
    crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema = tightened(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # which the API server knows itself
    return OAS30Validator(schema)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("which", JOBS)
def test_kuberay_takes_it(
    validator: OAS30Validator, tmp_path: Path, which: str, cloud: str
) -> None:
    job = job_of(tmp_path, JOBS[which])
    known = {"node_selector": {"pool": "spot"}} if (which, cloud) == ("spot", "nvidia") else {}
    made = rendered(job, cloud, **known)
    assert [error.message for error in validator.iter_errors(made)] == []
    assert len(made["metadata"]["name"]) <= MAX_NAME


@pytest.mark.parametrize("place", ["spec", "group", "container"])
def test_the_schema_refuses_a_bogus_field(
    validator: OAS30Validator, tmp_path: Path, place: str
) -> None:
    made = rendered(job_of(tmp_path, JOBS["h100"]))
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    places = {
        "spec": made["spec"],
        "group": group,
        "container": group["template"]["spec"]["containers"][0],
    }
    places[place]["bogus"] = 1
    assert any("bogus" in error.message for error in validator.iter_errors(made))


@pytest.mark.parametrize("which", JOBS)
def test_rays_autoscaler_knows_each_groups_resources(tmp_path: Path, which: str) -> None:
    job = job_of(tmp_path, JOBS[which])
    cluster = rendered(job)["spec"]["rayClusterSpec"]
    resource = {"metadata": {"name": "mine", "namespace": "default"}, "spec": cluster}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert not types["headgroup"]["resources"].get("GPU")
    for one in job.cluster.choices:
        group = types[f"{one.type}-{one.count}".lower()]
        assert group["resources"]["CPU"] == one.count * job.cluster.cpus_per_worker
        assert group["max_workers"] == job.cluster.max_nodes
        market = "spot" if job.cluster.use_spot else "on-demand"
        assert group["labels"]["ray.io/market-type"] == market
        if one.is_gpu:
            assert group["resources"]["GPU"] == one.count
            assert group["resources"][f"accelerator_type:{one.type}"] == one.count
            assert group["labels"]["ray.io/accelerator-type"] == one.type


def test_groups_follow_the_nodes_that_the_job_asks_for(tmp_path: Path) -> None:
    def scales(which: str) -> tuple[bool, list[tuple[int, int, int]]]:
        cluster = rendered(job_of(tmp_path, JOBS[which]))["spec"]["rayClusterSpec"]
        sizes = ("replicas", "minReplicas", "maxReplicas")
        groups = [tuple(group[size] for size in sizes) for group in cluster["workerGroupSpecs"]]
        return cluster["enableInTreeAutoscaling"], groups

    assert scales("h100") == (False, [(4, 4, 4)])
    assert scales("elastic") == (True, [(1, 1, 4)])
    assert scales("alternatives") == (True, [(0, 0, 2), (0, 0, 2)])


def test_the_first_choice_has_the_highest_priority(tmp_path: Path) -> None:
    cluster = rendered(job_of(tmp_path, JOBS["alternatives"]))["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    assert [(group["groupName"], group["priority"]) for group in groups] == [
        ("h100-8", 2),
        ("a100-8", 1),
    ]


def test_spot_goes_to_spot_nodes_and_the_head_stays_off_them(tmp_path: Path) -> None:
    job = job_of(tmp_path, JOBS["spot"])
    for cloud, label in (
        ("gke", {"cloud.google.com/gke-spot": "true"}),
        ("eks", {"karpenter.sh/capacity-type": "spot"}),
        ("aks", {"kubernetes.azure.com/scalesetpriority": "spot"}),
    ):
        cluster = rendered(job, cloud)["spec"]["rayClusterSpec"]
        worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert label.items() <= worker["nodeSelector"].items()
        assert not label.items() <= head.get("nodeSelector", {}).items()
        assert "tolerations" not in head


def test_a_node_selector_replaces_the_clouds(validator: OAS30Validator, tmp_path: Path) -> None:
    made = rendered(job_of(tmp_path, AMD), "nvidia", node_selector={"pool": "amd"})
    assert [error.message for error in validator.iter_errors(made)] == []
    pod = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "amd"}
    assert pod["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "8"
    assert pod["tolerations"][0]["key"] == "amd.com/gpu"


@pytest.mark.parametrize(
    ("overrides", "cloud", "options", "said"),
    [
        (AMD, "gke", {}, "--node-selector"),
        (["cluster.accelerators=K80:1"], "nvidia", {}, "--node-selector"),
        (JOBS["spot"], "nvidia", {}, "--node-selector"),
        (JOBS["cpu"], "azure", {}, "--cloud"),
        (JOBS["cpu"], "gke", {"name": "9-begins-with-a-digit"}, "--name"),
        (JOBS["cpu"], "gke", {"name": "a" * (MAX_NAME + 1)}, "--name"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, overrides: list[str], cloud: str, options: dict[str, str], said: str
) -> None:
    given: dict[str, Any] = {"name": "mine", "image": "i", "secret": "s"} | options
    with pytest.raises(JobError) as caught:
        ray_job(job_of(tmp_path, overrides), cloud=cloud, **given)
    message = str(caught.value)
    assert said in message
    assert LAW.match(message), message


def test_the_entrypoint_goes_on_with_one_run_from_the_mounted_job(tmp_path: Path) -> None:
    job = job_of(tmp_path, JOBS["h100"])
    spec = rendered(job)["spec"]
    # Words alone: KubeRay puts them into a shell of the submitter's, which would keep what follows
    # an operator for itself.
    assert spec["entrypoint"] == (
        f"python -m orchestration.cli run /etc/rayception/job.yaml --name {run_name(job)}"
    )
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mount = next(one for one in head["containers"][0]["volumeMounts"] if one["name"] == "job")
    volume = next(one for one in head["volumes"] if one["name"] == "job")
    mapped = config_map(job, name=run_name(job))
    assert mount["mountPath"] == "/etc/rayception"
    assert volume["configMap"]["name"] == mapped["metadata"]["name"]
    written = tmp_path / "mounted.yaml"
    written.write_text(yaml.safe_load(as_yaml([mapped]))["data"]["job.yaml"])
    assert load_job(written) == job


def test_a_queue_and_a_priority_are_kueues_labels(tmp_path: Path) -> None:
    fixed = rendered(job_of(tmp_path, JOBS["h100"]), queue="gpus", priority="high")["metadata"]
    assert fixed["labels"] == {
        "kueue.x-k8s.io/queue-name": "gpus",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert "annotations" not in fixed
    elastic = rendered(job_of(tmp_path, JOBS["alternatives"]), queue="gpus")["metadata"]
    assert elastic["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


def verb(tmp_path: Path, *arguments: str) -> str:
    """What the verb prints. Raises what it raises."""
    path = tmp_path / "job.yaml"
    path.write_text(SMALLEST)
    app = typer.Typer()
    app.command()(render)
    target, *rest = arguments
    done = CliRunner().invoke(app, [target, str(path), *rest])
    if isinstance(done.exception, JobError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("kuberay", "--cloud", "gke"),
        ("ray-up", "--cloud", "aws"),
        ("docker",),
        ("kuberay", "--cloud", "gke", "--json"),
    ],
)
def test_secrets_are_named_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    names = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
    for name in (*names, "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, MARKER)
    text = verb(tmp_path, arguments[0], *JOBS["secrets"], "--image", "i", *arguments[1:])
    assert MARKER not in text
    assert all(name in text for name in names)


def test_the_verb_prints_what_kubectl_takes_and_writes_files(tmp_path: Path) -> None:
    given = ("kuberay", *JOBS["h100"], "--cloud", "eks", "cluster.environment.image=r/i:1")
    printed = verb(tmp_path, *given)
    mapped, job = yaml.safe_load_all(printed)
    assert [mapped["kind"], job["kind"]] == ["ConfigMap", "RayJob"]
    assert "&id" not in printed
    # The image is the pods' already: the run asks for no second one within them.
    assert yaml.safe_load(mapped["data"]["job.yaml"])["cluster"]["environment"]["image"] is None
    listed = json.loads(verb(tmp_path, *given, "--json"))
    assert listed["items"] == [mapped, job]
    verb(tmp_path, *given, "--to", str(tmp_path / "made.yaml"))
    assert (tmp_path / "made.yaml").read_text() == printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("swarm", "--image", "i"), "TARGET"),
        (("kuberay", "--cloud", "gke"), "--image"),
        (("kuberay", "--image", "i"), "--cloud"),
        (("docker", "--image", "i", "--queue", "q"), "--queue"),
        (("kuberay", "--image", "i", "--cloud", "gke", "--node-selector", "gpu"), "KEY=VALUE"),
        (("docker", "--image", "i", "tracking.uri=local"), "tracking.uri"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        verb(tmp_path, *arguments)
    assert LAW.match(str(caught.value)), str(caught.value)
