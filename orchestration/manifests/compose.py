"""A job's cluster on one machine with Docker, as a compose file. Pure.

`docker compose up` starts it; the job is then submitted to http://127.0.0.1:8265, the only
published port. No secret is written: containers take each name of `cluster.secrets`, and the token
RAY_AUTH_TOKEN, from the environment of the command.
"""

import json
from typing import Any

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD
from orchestration.job.job import Job
from orchestration.manifests import nodes

DASHBOARD_PORT = 8265
GCS_PORT = 6379
START = ("ray", "start", "--block")


def compose(job: Job, *, image: str) -> dict[str, Any]:
    """A head without ranks, and one worker per node of the job's first choice.

    Raises JobError: several nodes with GPUs, as each would get the same ones of this machine.
    """
    accelerator, num_nodes = job.cluster.accelerator, job.cluster.min_nodes
    if accelerator.is_gpu and num_nodes > 1:
        raise JobError(
            f"cluster.num_nodes: got {num_nodes} with {accelerator}; Docker would give each node "
            "the same GPUs, and two ranks on one GPU hang in NCCL. Write num_nodes 1, or render "
            "kuberay."
        )
    head = _service(job, image, nodes.HEAD_VARIABLES, shm_gib=2) | {
        "command": [
            *START,
            "--head",
            f"--port={GCS_PORT}",
            "--dashboard-host=0.0.0.0",  # within the containers' network
            f"--dashboard-port={DASHBOARD_PORT}",
            "--num-cpus=0",
            "--num-gpus=0",
        ],
        "ports": [f"127.0.0.1:{DASHBOARD_PORT}:{DASHBOARD_PORT}"],
        "healthcheck": _healthcheck(nodes.GCS_HEALTH_URL),
    }
    resources = nodes.node_resources(job, accelerator)
    custom = {accelerator.ray_resource: accelerator.count} if accelerator.is_gpu else {}
    labels = nodes.node_labels(job, accelerator)
    worker = _service(job, image, {}, shm_gib=nodes.memory_gib(accelerator) // 2) | {
        "command": [
            *START,
            f"--address=head:{GCS_PORT}",
            f"--num-cpus={resources['CPU']}",
            f"--num-gpus={resources.get('GPU', 0)}",
            f"--resources={json.dumps(custom)}",
            f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        ],
        "depends_on": {"head": {"condition": "service_healthy"}},
        "deploy": {"replicas": num_nodes},
        "healthcheck": _healthcheck(nodes.RAYLET_HEALTH_URL),
    }
    if accelerator.type in AMD:  # its driver does not support reservations
        worker |= {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]}
    elif accelerator.is_gpu:
        device = {"driver": "nvidia", "count": accelerator.count, "capabilities": ["gpu"]}
        worker["deploy"]["resources"] = {"reservations": {"devices": [device]}}
    return {"name": job.name, "services": {"head": head, "worker": worker}}


def _service(job: Job, image: str, variables: dict[str, str], *, shm_gib: int) -> dict[str, Any]:
    variables = nodes.NODE_VARIABLES | {"RAY_AUTH_MODE": "token"} | variables
    secrets = dict.fromkeys(["RAY_AUTH_TOKEN", *job.cluster.secrets])
    return {
        "image": image,
        "working_dir": nodes.WORKING_DIR,
        "init": True,  # reaps the processes that workers leave behind
        "shm_size": f"{shm_gib}gb",
        "stop_grace_period": f"{nodes.GRACE_S}s",
        "environment": [*(f"{key}={value}" for key, value in variables.items()), *secrets],
    }


def _healthcheck(url: str) -> dict[str, Any]:
    return {
        "test": ["CMD-SHELL", f"wget --tries 1 -T 2 -q -O- {url} | grep -q success"],
        "interval": "5s",
        "timeout": "5s",
        "retries": 12,
        "start_period": "60s",
    }
