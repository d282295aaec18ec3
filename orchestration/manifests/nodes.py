"""A job's nodes as Ray (resources, labels, environment) and managed Kubernetes (node labels,
taints) describe them. Pure; kuberay.py, ray_up.py and compose.py render from it.

The labels are the clouds' own; `--node-selector` replaces them for a cluster with others.
"""

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD, Accelerator
from orchestration.job.job import Job

CLOUDS = ("gke", "eks", "aks", "nvidia")  # nvidia: only the labels of its GPU feature discovery
WORKING_DIR = "/home/ray/rayception"  # the checkout's folder in an image (infra/Dockerfile)
GRACE_S = 120  # long enough to write a checkpoint
# Memory per rank; half of it is /dev/shm. The clouds' smallest GPU machines have 15 GiB.
GPU_RANK_MEMORY_GIB = 12
CPU_RANK_MEMORY_GIB = 4
RAYLET_HEALTH_URL = "http://localhost:52365/api/local_raylet_healthz"
GCS_HEALTH_URL = "http://localhost:8265/api/gcs_healthz"

NODE_VARIABLES = {"PYTHONPATH": WORKING_DIR, "PYTHONUNBUFFERED": "1"}
# For the head: it notices a dead node or a cut link after about ten seconds instead of Ray's 63.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
HEAD_VARIABLES = {
    **HEALTH_CHECKS,
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S),
}


def _by_type(label: str, values: str) -> dict[str, dict[str, str]]:
    """`TYPE=VALUE ...` -> {TYPE: {label: VALUE}}."""
    pairs = [text.split("=") for text in values.split()]
    return {name: {label: value} for name, value in pairs}


# Node labels by cloud, then by TYPE, or by TYPE:COUNT if the count matters.
SELECTORS = {
    "gke": _by_type(
        "cloud.google.com/gke-accelerator",
        "A100=nvidia-tesla-a100 A100-40G=nvidia-tesla-a100 A100-80G=nvidia-a100-80gb "
        "B200=nvidia-b200 GB200=nvidia-gb200 H100=nvidia-h100-80gb H200=nvidia-h200-141gb "
        "L4=nvidia-l4 P100=nvidia-tesla-p100 P4=nvidia-tesla-p4 RTX-PRO-6000=nvidia-rtx-pro-6000 "
        "T4=nvidia-tesla-t4 V100=nvidia-tesla-v100",
    ),
    "eks": _by_type(  # Karpenter's labels
        "karpenter.k8s.aws/instance-gpu-name",
        "A100=a100 A10G=a10g B200=b200 H100=h100 H200=h200 L4=l4 L40S=l40s T4=t4 V100=v100",
    )
    | _by_type("karpenter.k8s.aws/instance-family", "A100-40G=p4d A100-80G=p4de"),
    "aks": _by_type(  # it has no label for a GPU's type, only for the machine's size
        "node.kubernetes.io/instance-type",
        "A100:1=Standard_NC24ads_A100_v4 A100:2=Standard_NC48ads_A100_v4 "
        "A100:4=Standard_NC96ads_A100_v4 A100:8=Standard_ND96asr_v4 "
        "A100-40G:8=Standard_ND96asr_v4 "
        "A100-80G:1=Standard_NC24ads_A100_v4 A100-80G:2=Standard_NC48ads_A100_v4 "
        "A100-80G:4=Standard_NC96ads_A100_v4 A100-80G:8=Standard_ND96amsr_A100_v4 "
        "AMD-Instinct-MI300X-OAM:8=Standard_ND96isr_MI300X_v5 "
        "H100:1=Standard_NC40ads_H100_v5 H100:2=Standard_NC80adis_H100_v5 "
        "H100:8=Standard_ND96isr_H100_v5 H200:8=Standard_ND96isr_H200_v5 "
        "T4:1=Standard_NC16as_T4_v3 T4:4=Standard_NC64as_T4_v3",
    ),
    "nvidia": _by_type(
        "nvidia.com/gpu.product",
        "A10G=NVIDIA-A10G A100=NVIDIA-A100-SXM4-80GB A100-40G=NVIDIA-A100-SXM4-40GB "
        "A100-80G=NVIDIA-A100-SXM4-80GB B200=NVIDIA-B200 H100=NVIDIA-H100-80GB-HBM3 "
        "H200=NVIDIA-H200 L4=NVIDIA-L4 L40S=NVIDIA-L40S T4=Tesla-T4",
    ),
}
SPOT = {
    "gke": {"cloud.google.com/gke-spot": "true"},
    "eks": {"karpenter.sh/capacity-type": "spot"},
    "aks": {"kubernetes.azure.com/scalesetpriority": "spot"},
}
# Only Karpenter needs it; the other clouds' spot nodes have a taint or a pool of their own.
ON_DEMAND = {"eks": {"karpenter.sh/capacity-type": "on-demand"}}


def node_resources(job: Job, accelerator: Accelerator) -> dict[str, int]:
    """Ray's resources of a node. The accelerator type is listed explicitly: for a request with a
    type, an autoscaler starts its first node only if its configuration lists the type."""
    resources = {"CPU": accelerator.count * job.cluster.cpus_per_worker}
    if accelerator.is_gpu:
        resources |= {"GPU": accelerator.count, accelerator.ray_resource: accelerator.count}
    return resources


def node_labels(job: Job, accelerator: Accelerator) -> dict[str, str]:
    """Ray's labels of a node."""
    labels = {"ray.io/market-type": "spot" if job.cluster.use_spot else "on-demand"}
    return labels | ({"ray.io/accelerator-type": accelerator.type} if accelerator.is_gpu else {})


def group_name(accelerator: Accelerator) -> str:
    """H100:8 -> h100-8."""
    return f"{accelerator.type}-{accelerator.count}".lower()


def memory_gib(accelerator: Accelerator) -> int:
    """Memory of a node with this many ranks."""
    per_rank = GPU_RANK_MEMORY_GIB if accelerator.is_gpu else CPU_RANK_MEMORY_GIB
    return accelerator.count * per_rank


def node_selector(job: Job, accelerator: Accelerator, cloud: str) -> dict[str, str]:
    """The labels of the cloud's nodes with this type. Raises JobError if none is known."""
    known = SELECTORS[cloud]
    labels: dict[str, str] | None = {}
    if accelerator.is_gpu:
        labels = known.get(str(accelerator), known.get(accelerator.type))
    if labels is None:
        raise JobError(
            f"cluster.accelerators: got {accelerator} on {cloud}, which has no node label known "
            f"here for it; {', '.join(known)} have one. Write --node-selector KEY=VALUE, the label "
            "of your nodes."
        )
    if job.cluster.use_spot and cloud not in SPOT:
        raise JobError(
            f"cluster.use_spot: got true on {cloud}, whose spot nodes have no label known here; "
            f"{', '.join(SPOT)} have one. Write --node-selector KEY=VALUE, the label of your nodes."
        )
    return labels | (SPOT if job.cluster.use_spot else ON_DEMAND).get(cloud, {})


def tolerations(job: Job, accelerator: Accelerator, cloud: str) -> list[dict[str, str]]:
    """For the taints that clouds put on GPU nodes and spot nodes."""
    taints = []
    if accelerator.is_gpu:
        taints.append({"key": gpu_resource(accelerator), "operator": "Exists"})
        if cloud == "aks":
            taints.append({"key": "sku", "operator": "Equal", "value": "gpu"})
    if job.cluster.use_spot and cloud in ("gke", "aks"):
        for key, value in SPOT[cloud].items():
            taints.append({"key": key, "operator": "Equal", "value": value})
    return [taint | {"effect": "NoSchedule"} for taint in taints]


def gpu_resource(accelerator: Accelerator) -> str:
    """Kubernetes' name of the device."""
    return "amd.com/gpu" if accelerator.type in AMD else "nvidia.com/gpu"
