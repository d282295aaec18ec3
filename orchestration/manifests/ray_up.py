"""A job's cluster as `ray up` takes it, on AWS or GCP. Pure.

`ray up FILE` starts it, `ray dashboard FILE` opens a tunnel, and the job is submitted through that
to http://localhost:8265; the dashboard itself listens on the head's loopback. No secret is written:
containers take each name of `cluster.secrets` from the environment of their machine (on Ubuntu,
/etc/environment), and the token is the one that `ray get-auth-token --generate` left at home.
"""

from typing import Any, NamedTuple

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD, Accelerator
from orchestration.job.job import Job
from orchestration.job.rules import choose
from orchestration.manifests import nodes

PROVIDERS = ("aws", "gcp")
HEAD_TYPE = "head"
HEAD_MACHINE = {"aws": "m6i.xlarge", "gcp": "n2-standard-4"}
DISK_GB = 200
TOKEN = ".ray/auth_token"
ZONE = {"aws": "us-west-2a", "gcp": "us-central1-a"}
GCP_CPU_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"
# On GCP these are put into an n1; the others are part of their machine type.
GCP_ATTACHED = {"P100": "nvidia-tesla-p100", "T4": "nvidia-tesla-t4", "V100": "nvidia-tesla-v100"}


class Machine(NamedTuple):
    """A machine type: `gpus` of `types` (none: CPU alone) and `cpus`."""

    name: str
    types: str
    gpus: int
    cpus: int


# The sizes of the AWS families g4dn, g5, g6 and g6e with one GPU, and of m6i.
G_SIZES = {"xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "16xlarge": 64}
M6I_SIZES = {
    **{"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48},
    **{"16xlarge": 64, "24xlarge": 96, "32xlarge": 128},
}
N2_CPUS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)
N1_CPUS = {"T4": {1: 32, 2: 32, 4: 96}, "V100": {1: 8, 2: 16, 4: 32, 8: 96}, "P100": {1: 16, 2: 32}}
# The first one that fits is taken.
MACHINES = {
    "aws": [
        *(Machine(f"m6i.{size}", "CPU", 0, cpus) for size, cpus in M6I_SIZES.items()),
        *(
            Machine(f"{family}.{size}", one, 1, cpus)
            for family, one in (("g4dn", "T4"), ("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S"))
            for size, cpus in G_SIZES.items()
        ),
        *(
            Machine(f"{family}.{size}", one, gpus, cpus)
            for family, one in (("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S"))
            for size, gpus, cpus in (("12xlarge", 4, 48), ("24xlarge", 4, 96), ("48xlarge", 8, 192))
        ),
        Machine("g4dn.12xlarge", "T4", 4, 48),
        Machine("g4dn.metal", "T4", 8, 96),
        Machine("p3.2xlarge", "V100", 1, 8),
        Machine("p3.8xlarge", "V100", 4, 32),
        Machine("p3.16xlarge", "V100", 8, 64),
        Machine("p4d.24xlarge", "A100 A100-40G", 8, 96),
        Machine("p4de.24xlarge", "A100-80G", 8, 96),
        Machine("p5.4xlarge", "H100", 1, 16),
        Machine("p5.48xlarge", "H100", 8, 192),
        Machine("p5en.48xlarge", "H200", 8, 192),
        Machine("p6-b200.48xlarge", "B200", 8, 192),
    ],
    "gcp": [
        *(Machine(f"n2-standard-{cpus}", "CPU", 0, cpus) for cpus in N2_CPUS),
        *(Machine(f"g2-standard-{cpus}", "L4", 1, cpus) for cpus in (4, 8, 12, 16, 32)),
        *(Machine(f"g2-standard-{24 * n}", "L4", 2 * n, 24 * n) for n in (1, 2, 4)),
        *(Machine(f"a2-highgpu-{n}g", "A100 A100-40G", n, 12 * n) for n in (1, 2, 4, 8)),
        *(Machine(f"a2-ultragpu-{n}g", "A100-80G", n, 12 * n) for n in (1, 2, 4, 8)),
        *(Machine(f"a3-highgpu-{n}g", "H100", n, 26 * n) for n in (1, 2, 4, 8)),
        Machine("a3-ultragpu-8g", "H200", 8, 224),
        Machine("a4-highgpu-8g", "B200", 8, 224),
        *(
            Machine(f"n1-standard-{cpus}", one, gpus, cpus)
            for one, most in N1_CPUS.items()
            for gpus, limit in most.items()
            for cpus in (4, 8, 16, 32, 64, 96)
            if cpus <= limit
        ),
    ],
}


def cluster_yaml(
    job: Job,
    *,
    provider: str,
    image: str,
    zone: str | None = None,
    project: str | None = None,
    instance_type: str | None = None,
    machine_image: str | None = None,
) -> dict[str, Any]:
    """The cluster that holds `job`: a head without work, a node type for each choice of the job.

    image: the container's. project: GCP's. instance_type: in the place of the table's, for the
    workers. machine_image: what the machines boot, an AMI's id or the path of a GCP image.
    Raises JobError: no such provider, a type without a known machine, a missing option.
    """
    choose("--cloud", provider, PROVIDERS)
    choices = list(dict.fromkeys(job.cluster.choices))
    if any(one.is_gpu for one in choices) and machine_image is None:
        raise JobError(
            f"--machine-image: got nothing; a GPU machine on {provider} boots an image with Docker "
            "and a driver as new as torch's CUDA, which Ray's default is not. Name an AMI's id, or "
            "projects/PROJECT/global/images/family/FAMILY on GCP."
        )
    types: dict[str, Any] = {
        HEAD_TYPE: {
            "resources": {"CPU": 0},
            "min_workers": 0,
            "max_workers": 0,
            "node_config": _machine(provider, HEAD_MACHINE[provider], machine_image),
        }
    }
    for one in choices:
        name = instance_type or _fitting(job, one, provider)
        types[nodes.group_name(one)] = {
            "resources": nodes.node_resources(job, one),
            "labels": nodes.node_labels(job, one),
            "min_workers": job.cluster.min_nodes if len(choices) == 1 else 0,
            "max_workers": job.cluster.max_nodes,
            "node_config": _machine(provider, name, machine_image)
            | _spot(provider, job.cluster.use_spot)
            | _attached(provider, one, name, job.cluster.use_spot),
        }
    health = " ".join(f"{key}={value}" for key, value in nodes.ON_HEAD.items())
    return {
        "cluster_name": job.name,
        "max_workers": sum(one["max_workers"] for one in types.values()),
        "idle_timeout_minutes": 5,
        "provider": _provider(provider, zone, project),
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": image,
            "container_name": "rayception",
            "pull_before_run": True,
            "run_options": _run_options(job, choices),
        },
        "file_mounts": {f"/home/ray/{TOKEN}": f"~/{TOKEN}"},
        "head_node_type": HEAD_TYPE,
        "available_node_types": types,
        "setup_commands": [],  # the image has everything
        "head_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"ulimit -n 65536; {health} ray start --head --port=6379 --object-manager-port=8076 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }


def _fitting(job: Job, one: Accelerator, provider: str) -> str:
    """The first machine with just these GPUs and at least the ranks' CPUs."""
    gpus, cpus = one.count if one.is_gpu else 0, nodes.node_resources(job, one)["CPU"]
    same_type = [m for m in MACHINES[provider] if one.type in m.types.split()]
    for machine in same_type:
        if machine.gpus == gpus and machine.cpus >= cpus:
            return machine.name
    have = sorted({f"{one.type}:{m.gpus} with {m.cpus} CPUs" for m in same_type if m.gpus})
    raise JobError(
        f"cluster.accelerators: got {one} with {cpus} CPUs a node on {provider}; no machine known "
        f"here is so ({', '.join(have) or 'none of that type'}). Write --instance-type NAME."
    )


def _provider(provider: str, zone: str | None, project: str | None) -> dict[str, Any]:
    zone = zone or ZONE[provider]
    if provider == "aws":
        return {"type": "aws", "region": zone.rstrip("abcdef"), "availability_zone": zone}
    if not project:
        raise JobError("--project: got nothing; on GCP machines belong to a project. Name its id.")
    region = zone.rpartition("-")[0]
    return {"type": "gcp", "region": region, "availability_zone": zone, "project_id": project}


def _machine(provider: str, name: str, image: str | None) -> dict[str, Any]:
    if provider == "aws":
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
        found: dict[str, Any] = {"InstanceType": name, "BlockDeviceMappings": [disk]}
        return found | ({"ImageId": image} if image else {})
    boot = {"diskSizeGb": DISK_GB, "sourceImage": image or GCP_CPU_IMAGE}
    disks = [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": boot}]
    return {"machineType": name, "disks": disks}


def _spot(provider: str, use_spot: bool) -> dict[str, Any]:
    if not use_spot:
        return {}
    if provider == "aws":
        return {"InstanceMarketOptions": {"MarketType": "spot"}}
    terms = {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    return {"scheduling": [{"provisioningModel": "SPOT", **terms}]}


def _attached(provider: str, one: Accelerator, machine: str, use_spot: bool) -> dict[str, Any]:
    """What a machine with GPUs needs besides on GCP: it cannot be moved while it runs."""
    if provider == "aws" or not one.is_gpu:
        return {}
    found: dict[str, Any] = {}
    if not use_spot:
        found["scheduling"] = [{"onHostMaintenance": "TERMINATE", "automaticRestart": True}]
    if one.type in GCP_ATTACHED and machine.startswith("n1-"):
        gpus = {"acceleratorType": GCP_ATTACHED[one.type], "acceleratorCount": one.count}
        found["guestAccelerators"] = [gpus]
    return found


def _run_options(job: Job, choices: list[Accelerator]) -> list[str]:
    """Of `docker run`. A variable that is named without a value is taken from the machine's own."""
    variables = {"RAY_AUTH_MODE": "token"} | nodes.EVERYWHERE
    shm_gib = max(map(nodes.memory_gib, choices)) // 2
    devices = ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=video"]
    return [
        f"--shm-size={shm_gib}g",
        "--ulimit nofile=65536:65536",
        *(f"--env {key}={value}" for key, value in variables.items()),
        *(f"--env {name}" for name in job.cluster.secrets),
        *(devices if any(one.type in AMD for one in choices) else []),
    ]
