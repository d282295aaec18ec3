"""A job's cluster for `ray up`, on AWS or GCP. Pure.

`ray up FILE` starts it, `ray dashboard FILE` opens a tunnel, and the job is submitted through that
to http://localhost:8265; the dashboard itself listens on the head's loopback. No secret is written:
containers take each name of `cluster.secrets` from the environment of their machine (on Ubuntu,
/etc/environment), and the token is the one that `ray get-auth-token --generate` left in the home
folder.
"""

from typing import Any, NamedTuple

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD, Accelerator
from orchestration.job.job import Job
from orchestration.job.rules import check_choice
from orchestration.manifests import nodes

PROVIDERS = ("aws", "gcp")
HEAD_MACHINE = {"aws": "m6i.xlarge", "gcp": "n2-standard-4"}
DISK_GB = 200
TOKEN = ".ray/auth_token"
ZONE = {"aws": "us-west-2a", "gcp": "us-central1-a"}
GCP_CPU_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"
# GCP attaches these to an n1 machine; the other GPUs are part of their machine type.
GCP_ATTACHED = {"P100": "nvidia-tesla-p100", "T4": "nvidia-tesla-t4", "V100": "nvidia-tesla-v100"}


class Machine(NamedTuple):
    """A machine type with `gpus` GPUs of one of `types` (CPU: none) and `cpus` virtual CPUs."""

    name: str
    types: list[str]
    gpus: int
    cpus: int


def _parse_machines(table: str) -> list[Machine]:
    """Lines of `TYPE[,TYPE] PREFIX SIZE:GPUS:CPUS ...`; a machine's name is PREFIX + SIZE."""
    machines = []
    for types, prefix, *sizes in map(str.split, table.strip().splitlines()):
        for size, gpus, cpus in (text.split(":") for text in sizes):
            machines.append(Machine(prefix + size, types.split(","), int(gpus), int(cpus)))
    return machines


# The first machine that fits is used, so those with the same GPUs are sorted by CPUs.
MACHINES = {
    "aws": _parse_machines("""
        CPU m6i. large:0:2 xlarge:0:4 2xlarge:0:8 4xlarge:0:16 8xlarge:0:32 12xlarge:0:48
        CPU m6i. 16xlarge:0:64 24xlarge:0:96 32xlarge:0:128
        T4 g4dn. xlarge:1:4 2xlarge:1:8 4xlarge:1:16 8xlarge:1:32 16xlarge:1:64
        T4 g4dn. 12xlarge:4:48 metal:8:96
        A10G g5. xlarge:1:4 2xlarge:1:8 4xlarge:1:16 8xlarge:1:32 16xlarge:1:64
        A10G g5. 12xlarge:4:48 24xlarge:4:96 48xlarge:8:192
        L4 g6. xlarge:1:4 2xlarge:1:8 4xlarge:1:16 8xlarge:1:32 16xlarge:1:64
        L4 g6. 12xlarge:4:48 24xlarge:4:96 48xlarge:8:192
        L40S g6e. xlarge:1:4 2xlarge:1:8 4xlarge:1:16 8xlarge:1:32 16xlarge:1:64
        L40S g6e. 12xlarge:4:48 24xlarge:4:96 48xlarge:8:192
        V100 p3. 2xlarge:1:8 8xlarge:4:32 16xlarge:8:64
        A100,A100-40G p4d. 24xlarge:8:96
        A100-80G p4de. 24xlarge:8:96
        H100 p5. 4xlarge:1:16 48xlarge:8:192
        H200 p5en. 48xlarge:8:192
        B200 p6-b200. 48xlarge:8:192
    """),
    "gcp": _parse_machines("""
        CPU n2-standard- 2:0:2 4:0:4 8:0:8 16:0:16 32:0:32 48:0:48 64:0:64 80:0:80 96:0:96 128:0:128
        L4 g2-standard- 4:1:4 8:1:8 12:1:12 16:1:16 32:1:32 24:2:24 48:4:48 96:8:96
        A100,A100-40G a2-highgpu- 1g:1:12 2g:2:24 4g:4:48 8g:8:96
        A100-80G a2-ultragpu- 1g:1:12 2g:2:24 4g:4:48 8g:8:96
        H100 a3-highgpu- 1g:1:26 2g:2:52 4g:4:104 8g:8:208
        H200 a3-ultragpu- 8g:8:224
        B200 a4-highgpu- 8g:8:224
        T4 n1-standard- 4:1:4 8:1:8 16:1:16 32:1:32 4:2:4 8:2:8 16:2:16 32:2:32
        T4 n1-standard- 4:4:4 8:4:8 16:4:16 32:4:32 64:4:64 96:4:96
        V100 n1-standard- 4:1:4 8:1:8 4:2:4 8:2:8 16:2:16 4:4:4 8:4:8 16:4:16 32:4:32
        V100 n1-standard- 4:8:4 8:8:8 16:8:16 32:8:32 64:8:64 96:8:96
        P100 n1-standard- 4:1:4 8:1:8 16:1:16 4:2:4 8:2:8 16:2:16 32:2:32
    """),
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
    """The cluster for `job`: a head without ranks, and a node type per choice of the job.

    The parameters are the options of `render ray-up`. image: the containers'. project: GCP's.
    instance_type: replaces the table's, for the workers. machine_image: what the machines boot, an
    AMI's id or the path of a GCP image. Raises JobError: an unknown provider, a type without a
    known machine, a missing option.
    """
    check_choice("--cloud", provider, PROVIDERS)
    choices = list(dict.fromkeys(job.cluster.choices))
    if any(choice.is_gpu for choice in choices) and machine_image is None:
        raise JobError(
            f"--machine-image: got nothing; a GPU machine on {provider} boots an image with Docker "
            "and a driver as new as torch's CUDA, which Ray's default is not. Name an AMI's id, or "
            "projects/PROJECT/global/images/family/FAMILY on GCP."
        )
    types: dict[str, Any] = {
        "head": {
            "resources": {"CPU": 0},
            "min_workers": 0,
            "max_workers": 0,
            "node_config": _machine(provider, HEAD_MACHINE[provider], machine_image),
        }
    }
    for choice in choices:
        name = instance_type or _find_machine(job, choice, provider)
        types[nodes.group_name(choice)] = {
            "resources": nodes.node_resources(job, choice),
            "labels": nodes.node_labels(job, choice),
            "min_workers": job.cluster.min_nodes if len(choices) == 1 else 0,
            "max_workers": job.cluster.max_nodes,
            "node_config": _machine(provider, name, machine_image)
            | _worker_config(provider, choice, name, job.cluster.use_spot),
        }
    variables = " ".join(f"{key}={value}" for key, value in nodes.HEAD_VARIABLES.items())
    return {
        "cluster_name": job.name,
        "max_workers": sum(node_type["max_workers"] for node_type in types.values()),
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
        "head_node_type": "head",
        "available_node_types": types,
        "setup_commands": [],  # everything is in the image
        "head_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"ulimit -n 65536; {variables} ray start --head --port=6379 --object-manager-port=8076 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }


def _find_machine(job: Job, accelerator: Accelerator, provider: str) -> str:
    """The first machine with exactly these GPUs and at least the CPUs of the ranks."""
    gpus = accelerator.count if accelerator.is_gpu else 0
    cpus = nodes.node_resources(job, accelerator)["CPU"]
    same_type = [m for m in MACHINES[provider] if accelerator.type in m.types]
    for machine in same_type:
        if machine.gpus == gpus and machine.cpus >= cpus:
            return machine.name
    sizes = sorted({f"{accelerator.type}:{m.gpus} with {m.cpus} CPUs" for m in same_type if m.gpus})
    raise JobError(
        f"cluster.accelerators: got {accelerator} with {cpus} CPUs per node on {provider}; no "
        f"machine known here has that ({', '.join(sizes) or 'none of that type'}). Write "
        "--instance-type NAME."
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
        config: dict[str, Any] = {"InstanceType": name, "BlockDeviceMappings": [disk]}
        return config | ({"ImageId": image} if image else {})
    boot = {"diskSizeGb": DISK_GB, "sourceImage": image or GCP_CPU_IMAGE}
    disks = [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": boot}]
    return {"machineType": name, "disks": disks}


def _worker_config(
    provider: str, accelerator: Accelerator, machine: str, use_spot: bool
) -> dict[str, Any]:
    """Spot terms and, on GCP, GPU settings: its GPU machines do not support live migration."""
    if provider == "aws":
        return {"InstanceMarketOptions": {"MarketType": "spot"}} if use_spot else {}
    config: dict[str, Any] = {}
    terms = {"onHostMaintenance": "TERMINATE", "automaticRestart": not use_spot}
    if use_spot:
        config["scheduling"] = [{"provisioningModel": "SPOT", **terms}]
    elif accelerator.is_gpu:
        config["scheduling"] = [terms]
    if accelerator.type in GCP_ATTACHED and machine.startswith("n1-"):
        gpu = GCP_ATTACHED[accelerator.type]
        config["guestAccelerators"] = [
            {"acceleratorType": gpu, "acceleratorCount": accelerator.count}
        ]
    return config


def _run_options(job: Job, choices: list[Accelerator]) -> list[str]:
    """Options of `docker run`. A variable without a value takes the machine's own."""
    variables = {"RAY_AUTH_MODE": "token"} | nodes.NODE_VARIABLES
    shm_gib = max(map(nodes.memory_gib, choices)) // 2
    devices = ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=video"]
    return [
        f"--shm-size={shm_gib}g",
        "--ulimit nofile=65536:65536",
        *(f"--env {key}={value}" for key, value in variables.items()),
        *(f"--env {name}" for name in job.cluster.secrets),
        *(devices if any(choice.type in AMD for choice in choices) else []),
    ]
