"""A job's cluster on one machine with Docker, as a compose file. Pure.

`docker compose up` starts it; the job is then submitted to http://127.0.0.1:8265, the one port that
is published. No secret is written: containers take each name of `cluster.secrets`, and the token
RAY_AUTH_TOKEN, from the environment of the command.
"""

import json
from typing import Any

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD, Accelerator
from orchestration.job.job import Job
from orchestration.manifests import nodes

DASHBOARD_PORT = 8265
GCS_PORT = 6379


def compose(job: Job, *, image: str) -> dict[str, Any]:
    """A head without work, and a worker for each node of the job's first choice.

    Raises JobError: several nodes with GPUs, which one machine would give to each of them.
    """
    one, num_nodes = job.cluster.accelerator, job.cluster.min_nodes
    if one.is_gpu and num_nodes > 1:
        raise JobError(
            f"cluster.num_nodes: got {num_nodes} with {one}; Docker would give each node the same "
            "GPUs, and two ranks on one GPU hang in NCCL. Write num_nodes 1, or render kuberay."
        )
    head = _service(job, image, nodes.ON_HEAD, shm_gib=2) | {
        "command": _start(
            "--head",
            f"--port={GCS_PORT}",
            "--dashboard-host=0.0.0.0",  # within the containers' network
            f"--dashboard-port={DASHBOARD_PORT}",
            "--num-cpus=0",
            "--num-gpus=0",
        ),
        "ports": [f"127.0.0.1:{DASHBOARD_PORT}:{DASHBOARD_PORT}"],
        "healthcheck": _asks(f"http://localhost:{DASHBOARD_PORT}/api/gcs_healthz"),
    }
    resources = nodes.node_resources(job, one)
    marker = json.dumps({one.marker: one.count}) if one.is_gpu else "{}"
    labels = ",".join(f"{key}={value}" for key, value in nodes.node_labels(job, one).items())
    worker = _service(job, image, {}, shm_gib=max(1, nodes.memory_gib(one) // 2)) | {
        "command": _start(
            f"--address=head:{GCS_PORT}",
            f"--num-cpus={resources['CPU']}",
            f"--num-gpus={resources.get('GPU', 0)}",
            f"--resources={marker}",
            f"--labels={labels}",
        ),
        "depends_on": {"head": {"condition": "service_healthy"}},
        "deploy": {"replicas": num_nodes, **_reservation(one)},
        "healthcheck": _asks("http://localhost:52365/api/local_raylet_healthz"),
    }
    if one.type in AMD:  # their driver has no reservations
        worker |= {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]}
    return {"name": job.name, "services": {"head": head, "worker": worker}}


def _start(*options: str) -> list[str]:
    return ["ray", "start", "--block", *options]


def _service(job: Job, image: str, more: dict[str, str], *, shm_gib: int) -> dict[str, Any]:
    variables = nodes.EVERYWHERE | {"RAY_AUTH_MODE": "token"} | more
    names = dict.fromkeys(["RAY_AUTH_TOKEN", *job.cluster.secrets])
    return {
        "image": image,
        "working_dir": nodes.WORKING_DIR,
        "init": True,  # which reaps the processes that workers leave
        "shm_size": f"{shm_gib}gb",
        "stop_grace_period": f"{nodes.GRACE_S}s",
        "environment": [*(f"{key}={value}" for key, value in variables.items()), *names],
    }


def _reservation(one: Accelerator) -> dict[str, Any]:
    if not one.is_gpu or one.type in AMD:
        return {}
    device = {"driver": "nvidia", "count": one.count, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}


def _asks(url: str) -> dict[str, Any]:
    return {
        "test": ["CMD-SHELL", f"wget --tries 1 -T 2 -q -O- {url} | grep -q success"],
        "interval": "5s",
        "timeout": "5s",
        "retries": 12,
        "start_period": "60s",
    }
