"""Clusters of `ray up`: Ray's schema and Ray's own validation accept them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
from jsonschema import Draft7Validator
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.manifests.ray_up import MACHINES, PROVIDERS, cluster_yaml
from tests.unit.orchestration.manifests.jobs import AMD, JOBS, LAW, make_job

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
ALL_JOBS = JOBS | {
    "t4": ["cluster.accelerators=T4:1", "cluster.cpus_per_worker=6"],
    "l4": ["cluster.accelerators=L4:1", "cluster.cpus_per_worker=10"],
    "v100": ["cluster.accelerators=V100:8", "cluster.cpus_per_worker=8"],
}


def rendered(job: Job, provider: str = "aws", **options: Any) -> dict[str, Any]:
    arguments = {"image": "r/i:1", "project": "p-1", "machine_image": "ami-1"} | options
    return cluster_yaml(job, provider=provider, **arguments)


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    types = cluster["available_node_types"]
    return {name: types[name] for name in types if name != cluster["head_node_type"]}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("which", ALL_JOBS)
def test_ray_takes_it(tmp_path: Path, which: str, provider: str) -> None:
    cluster = rendered(make_job(tmp_path, ALL_JOBS[which]), provider)
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(cluster)] == []
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    # None of Ray's defaults is left that would install another Ray into the image.
    assert "pip install" not in json.dumps(prepared)


def test_the_schema_refuses_a_bogus_field(tmp_path: Path) -> None:
    cluster = rendered(make_job(tmp_path, ALL_JOBS["cpu"])) | {"bogus": 1}
    assert any("bogus" in error.message for error in Draft7Validator(SCHEMA).iter_errors(cluster))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("which", ALL_JOBS)
def test_workers_say_their_type_and_the_head_holds_no_work(
    tmp_path: Path, which: str, provider: str
) -> None:
    job = make_job(tmp_path, ALL_JOBS[which])
    cluster = rendered(job, provider)
    head = cluster["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert len(workers(cluster)) == len(job.cluster.choices)
    for accelerator in job.cluster.choices:
        group = workers(cluster)[f"{accelerator.type}-{accelerator.count}".lower()]
        assert group["resources"]["CPU"] == accelerator.count * job.cluster.cpus_per_worker
        assert group["resources"].get("GPU", 0) == (accelerator.count if accelerator.is_gpu else 0)
        assert group["resources"].get(accelerator.ray_resource, 0) == (
            accelerator.count if accelerator.is_gpu else 0
        )
        assert group["max_workers"] == job.cluster.max_nodes
        assert group["min_workers"] == (0 if which == "alternatives" else job.cluster.min_nodes)


@pytest.mark.parametrize(
    ("overrides", "aws", "gcp"),
    [
        (ALL_JOBS["cpu"], "m6i.large", "n2-standard-2"),
        (ALL_JOBS["h100"], "p5.48xlarge", "a3-highgpu-8g"),
        (ALL_JOBS["spot"], "p4de.24xlarge", "a2-ultragpu-8g"),
        (["cluster.accelerators=A100:8"], "p4d.24xlarge", "a2-highgpu-8g"),
        (ALL_JOBS["l4"], "g6.4xlarge", "g2-standard-12"),
        (ALL_JOBS["v100"], "p3.16xlarge", "n1-standard-64"),
        (ALL_JOBS["t4"], "g4dn.2xlarge", "n1-standard-8"),
    ],
)
def test_the_machine_has_the_gpus_and_the_cpus(
    tmp_path: Path, overrides: list[str], aws: str, gcp: str
) -> None:
    job = make_job(tmp_path, overrides)
    (on_aws,) = workers(rendered(job, "aws")).values()
    (on_gcp,) = workers(rendered(job, "gcp")).values()
    assert on_aws["node_config"]["InstanceType"] == aws
    assert on_gcp["node_config"]["machineType"] == gcp


def test_gpus_of_an_n1_are_attached(tmp_path: Path) -> None:
    (worker,) = workers(rendered(make_job(tmp_path, ALL_JOBS["t4"]), "gcp")).values()
    assert worker["node_config"]["guestAccelerators"] == [
        {"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}
    ]
    assert worker["node_config"]["scheduling"][0]["onHostMaintenance"] == "TERMINATE"


def test_spot_is_for_workers_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path, ALL_JOBS["spot"])
    for provider, key in (("aws", "InstanceMarketOptions"), ("gcp", "scheduling")):
        cluster = rendered(job, provider)
        (worker,) = workers(cluster).values()
        assert "spot" in str(worker["node_config"][key]).lower()
        assert worker["labels"]["ray.io/market-type"] == "spot"
        assert key not in cluster["available_node_types"]["head"]["node_config"]


def test_secrets_and_shared_memory_are_run_options(tmp_path: Path) -> None:
    options = rendered(make_job(tmp_path, ALL_JOBS["secrets"]))["docker"]["run_options"]
    assert "--env AWS_SECRET_ACCESS_KEY" in options
    assert any(option.startswith("--shm-size=") for option in options)


def test_the_dashboard_is_reached_through_a_tunnel_alone(tmp_path: Path) -> None:
    start = rendered(make_job(tmp_path, ALL_JOBS["cpu"]))["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_health_check_failure_threshold=3 " in start


def test_another_machine_can_be_named(tmp_path: Path) -> None:
    cluster = rendered(make_job(tmp_path, AMD), instance_type="mine.8x", zone="eu-west-1b")
    (worker,) = workers(cluster).values()
    assert worker["node_config"]["InstanceType"] == "mine.8x"
    assert cluster["provider"]["region"] == "eu-west-1"
    assert "--device=/dev/kfd" in cluster["docker"]["run_options"]


@pytest.mark.parametrize(
    ("overrides", "provider", "options", "expected"),
    [
        (AMD, "aws", {}, "--instance-type"),
        (["cluster.accelerators=H100:3"], "gcp", {}, "--instance-type"),
        (ALL_JOBS["h100"], "aws", {"machine_image": None}, "--machine-image"),
        (ALL_JOBS["cpu"], "gcp", {"project": None}, "--project"),
        (ALL_JOBS["cpu"], "azure", {}, "--cloud"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, overrides: list[str], provider: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(JobError, match=expected) as caught:
        rendered(make_job(tmp_path, overrides), provider, **options)
    assert LAW.match(str(caught.value)), str(caught.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_machines_are_listed_by_their_cpus(provider: str) -> None:
    """The first that fits is the smallest."""
    for machine in MACHINES[provider]:
        key = machine.types, machine.gpus
        cpus = [m.cpus for m in MACHINES[provider] if (m.types, m.gpus) == key]
        assert cpus == sorted(cpus)
