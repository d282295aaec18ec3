"""RayJobs: KubeRay's own schema accepts them, Ray's autoscaler reads them, they hold no secret.

The CRDs are read from $KUBERAY_CRDS, else from the folder beside the checkout.
"""

import json
import os
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
from tests.unit.orchestration.manifests.jobs import (
    AMD,
    JOBS,
    LAW,
    SECRET_VALUE,
    SMALLEST,
    make_job,
)

ROOT = Path(__file__).resolve().parents[4]
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT / ".." / "shared" / "reference" / "kuberay"))


def rendered(job: Job, cloud: str = "gke", **options: Any) -> dict[str, Any]:
    return ray_job(job, cloud=cloud, image="r/i:1", name=run_name(job), secret="mine", **options)


def tightened(schema: Any) -> Any:
    """The CRD's schema as an API server with strict field validation reads it."""
    if isinstance(schema, list):
        return [tightened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: tightened(value) for key, value in schema.items()}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_open = strict.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(strict.get("properties"), dict) and not is_open:
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.fixture(scope="module")
def validator() -> OAS30Validator:
    path = CRDS / "ray.io_rayjobs.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRDs in {CRDS}: set KUBERAY_CRDS to their folder")
    crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = tightened(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # validated by the API server
    return OAS30Validator(schema)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("which", JOBS)
def test_kuberay_takes_it(
    validator: OAS30Validator, tmp_path: Path, which: str, cloud: str
) -> None:
    job = make_job(tmp_path, JOBS[which])
    known = {"node_selector": {"pool": "spot"}} if (which, cloud) == ("spot", "nvidia") else {}
    manifest = rendered(job, cloud, **known)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    assert len(manifest["metadata"]["name"]) <= MAX_NAME


@pytest.mark.parametrize("place", ["spec", "group", "container"])
def test_the_schema_refuses_a_bogus_field(
    validator: OAS30Validator, tmp_path: Path, place: str
) -> None:
    manifest = rendered(make_job(tmp_path, JOBS["h100"]))
    group = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    places = {
        "spec": manifest["spec"],
        "group": group,
        "container": group["template"]["spec"]["containers"][0],
    }
    places[place]["bogus"] = 1
    assert any("bogus" in error.message for error in validator.iter_errors(manifest))


@pytest.mark.parametrize("which", JOBS)
def test_rays_autoscaler_knows_each_groups_resources(tmp_path: Path, which: str) -> None:
    job = make_job(tmp_path, JOBS[which])
    cluster = rendered(job)["spec"]["rayClusterSpec"]
    resource = {"metadata": {"name": "mine", "namespace": "default"}, "spec": cluster}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert not types["headgroup"]["resources"].get("GPU")
    for accelerator in job.cluster.choices:
        group = types[f"{accelerator.type}-{accelerator.count}".lower()]
        assert group["resources"]["CPU"] == accelerator.count * job.cluster.cpus_per_worker
        assert group["max_workers"] == job.cluster.max_nodes
        market = "spot" if job.cluster.use_spot else "on-demand"
        assert group["labels"]["ray.io/market-type"] == market
        if accelerator.is_gpu:
            assert group["resources"]["GPU"] == accelerator.count
            assert group["resources"][f"accelerator_type:{accelerator.type}"] == accelerator.count
            assert group["labels"]["ray.io/accelerator-type"] == accelerator.type


def test_groups_follow_the_nodes_that_the_job_asks_for(tmp_path: Path) -> None:
    def scales(which: str) -> tuple[bool, list[tuple[int, int, int]]]:
        cluster = rendered(make_job(tmp_path, JOBS[which]))["spec"]["rayClusterSpec"]
        sizes = ("replicas", "minReplicas", "maxReplicas")
        groups = [tuple(group[size] for size in sizes) for group in cluster["workerGroupSpecs"]]
        return cluster["enableInTreeAutoscaling"], groups

    assert scales("h100") == (False, [(4, 4, 4)])
    assert scales("elastic") == (True, [(1, 1, 4)])
    assert scales("alternatives") == (True, [(0, 0, 2), (0, 0, 2)])


def test_the_first_choice_has_the_highest_priority(tmp_path: Path) -> None:
    cluster = rendered(make_job(tmp_path, JOBS["alternatives"]))["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    assert [(group["groupName"], group["priority"]) for group in groups] == [
        ("h100-8", 2),
        ("a100-8", 1),
    ]


def test_spot_goes_to_spot_nodes_and_the_head_stays_off_them(tmp_path: Path) -> None:
    job = make_job(tmp_path, JOBS["spot"])
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
    manifest = rendered(make_job(tmp_path, AMD), "nvidia", node_selector={"pool": "amd"})
    assert [error.message for error in validator.iter_errors(manifest)] == []
    pod = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "amd"}
    assert pod["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "8"
    assert pod["tolerations"][0]["key"] == "amd.com/gpu"


@pytest.mark.parametrize(
    ("overrides", "cloud", "options", "expected"),
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
    tmp_path: Path, overrides: list[str], cloud: str, options: dict[str, str], expected: str
) -> None:
    arguments: dict[str, Any] = {"name": "mine", "image": "i", "secret": "s"} | options
    with pytest.raises(JobError) as caught:
        ray_job(make_job(tmp_path, overrides), cloud=cloud, **arguments)
    message = str(caught.value)
    assert expected in message
    assert LAW.match(message), message


def test_the_entrypoint_goes_on_with_one_run_from_the_mounted_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, JOBS["h100"])
    spec = rendered(job)["spec"]
    # No shell operators: KubeRay pastes it into a shell command of the submitter pod, which would
    # run what follows an operator itself.
    assert spec["entrypoint"] == (
        f"python -m orchestration.cli run /etc/rayception/job.yaml --name {run_name(job)}"
    )
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mount = next(m for m in head["containers"][0]["volumeMounts"] if m["name"] == "job")
    volume = next(v for v in head["volumes"] if v["name"] == "job")
    config = config_map(job, name=run_name(job))
    assert mount["mountPath"] == "/etc/rayception"
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    written = tmp_path / "mounted.yaml"
    written.write_text(yaml.safe_load(as_yaml([config]))["data"]["job.yaml"])
    assert load_job(written) == job


def test_a_queue_and_a_priority_are_kueues_labels(tmp_path: Path) -> None:
    fixed = rendered(make_job(tmp_path, JOBS["h100"]), queue="gpus", priority="high")["metadata"]
    assert fixed["labels"] == {
        "kueue.x-k8s.io/queue-name": "gpus",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert "annotations" not in fixed
    elastic = rendered(make_job(tmp_path, JOBS["alternatives"]), queue="gpus")["metadata"]
    assert elastic["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


def verb(tmp_path: Path, *arguments: str) -> str:
    """The output of `render`. Raises its JobError."""
    path = tmp_path / "job.yaml"
    path.write_text(SMALLEST)
    app = typer.Typer()
    app.command()(render)
    target, *rest = arguments
    result = CliRunner().invoke(app, [target, str(path), *rest])
    if isinstance(result.exception, JobError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


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
        monkeypatch.setenv(name, SECRET_VALUE)
    text = verb(tmp_path, arguments[0], *JOBS["secrets"], "--image", "i", *arguments[1:])
    assert SECRET_VALUE not in text
    assert all(name in text for name in names)


def test_the_verb_prints_what_kubectl_takes_and_writes_files(tmp_path: Path) -> None:
    arguments = ("kuberay", *JOBS["h100"], "--cloud", "eks", "cluster.environment.image=r/i:1")
    printed = verb(tmp_path, *arguments)
    config, job = yaml.safe_load_all(printed)
    assert [config["kind"], job["kind"]] == ["ConfigMap", "RayJob"]
    assert "&id" not in printed
    # The pods run the image already: the job must not request a second one inside them.
    assert yaml.safe_load(config["data"]["job.yaml"])["cluster"]["environment"]["image"] is None
    listed = json.loads(verb(tmp_path, *arguments, "--json"))
    assert listed["items"] == [config, job]
    verb(tmp_path, *arguments, "--to", str(tmp_path / "written.yaml"))
    assert (tmp_path / "written.yaml").read_text() == printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("swarm", "--image", "i"), "TARGET"),
        (("kuberay", "--cloud", "gke"), "--image"),
        (("kuberay", "--image", "i"), "--cloud"),
        (("docker", "--image", "i", "--queue", "q"), "--queue"),
        (("kuberay", "--image", "i", "--cloud", "gke", "--node-selector", "gpu"), "KEY=VALUE"),
        (("docker", "--image", "i", "tracking.uri=local"), "tracking.uri"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(JobError, match=expected) as caught:
        verb(tmp_path, *arguments)
    assert LAW.match(str(caught.value)), str(caught.value)
