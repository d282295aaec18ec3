"""What the nodes of a job are: to Ray (resources, labels, environment) and to the clouds that run
Kubernetes (node labels, taints). Pure; kuberay.py, ray_up.py and compose.py render from it.

The labels are the clouds' own; `--node-selector` replaces them where a cluster has others.
"""

from orchestration.errors import JobError
from orchestration.job.accelerators import AMD, Accelerator
from orchestration.job.job import Job

CLOUDS = ("gke", "eks", "aks", "nvidia")  # nvidia: bare labels of its GPU feature discovery
WORKING_DIR = "/home/ray/rayception"  # where an image has the checkout (infra/Dockerfile)
GRACE_S = 120  # a checkpoint is written within it
# Of one rank, the half of it /dev/shm. The smallest GPU machines of the clouds have 15 GiB.
GPU_RANK_MEMORY_GIB = 12
CPU_RANK_MEMORY_GIB = 4

EVERYWHERE = {
    "PYTHONPATH": WORKING_DIR,
    "PYTHONUNBUFFERED": "1",
}
# Of the head: a dead node or cut link is noticed after some ten seconds, not after Ray's 63.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
ON_HEAD = {
    **HEALTH_CHECKS,
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S),
}

GKE = {
    "A100": "nvidia-tesla-a100",
    "A100-40G": "nvidia-tesla-a100",
    "A100-80G": "nvidia-a100-80gb",
    "B200": "nvidia-b200",
    "GB200": "nvidia-gb200",
    "H100": "nvidia-h100-80gb",
    "H200": "nvidia-h200-141gb",
    "L4": "nvidia-l4",
    "P100": "nvidia-tesla-p100",
    "P4": "nvidia-tesla-p4",
    "RTX-PRO-6000": "nvidia-rtx-pro-6000",
    "T4": "nvidia-tesla-t4",
    "V100": "nvidia-tesla-v100",
}
KARPENTER = ("A100", "A10G", "B200", "H100", "H200", "L4", "L40S", "T4", "V100")
KARPENTER_A100 = {"A100-40G": "p4d", "A100-80G": "p4de"}  # instance families
# AKS has no label for a GPU's type: its nodes are known by their size.
AKS = {
    "A100:1": "Standard_NC24ads_A100_v4",
    "A100:2": "Standard_NC48ads_A100_v4",
    "A100:4": "Standard_NC96ads_A100_v4",
    "A100:8": "Standard_ND96asr_v4",
    "A100-40G:8": "Standard_ND96asr_v4",
    "A100-80G:1": "Standard_NC24ads_A100_v4",
    "A100-80G:2": "Standard_NC48ads_A100_v4",
    "A100-80G:4": "Standard_NC96ads_A100_v4",
    "A100-80G:8": "Standard_ND96amsr_A100_v4",
    "AMD-Instinct-MI300X-OAM:8": "Standard_ND96isr_MI300X_v5",
    "H100:1": "Standard_NC40ads_H100_v5",
    "H100:2": "Standard_NC80adis_H100_v5",
    "H100:8": "Standard_ND96isr_H100_v5",
    "H200:8": "Standard_ND96isr_H200_v5",
    "T4:1": "Standard_NC16as_T4_v3",
    "T4:4": "Standard_NC64as_T4_v3",
}
FEATURE_DISCOVERY = {
    "A10G": "NVIDIA-A10G",
    "A100": "NVIDIA-A100-SXM4-80GB",
    "A100-40G": "NVIDIA-A100-SXM4-40GB",
    "A100-80G": "NVIDIA-A100-SXM4-80GB",
    "B200": "NVIDIA-B200",
    "H100": "NVIDIA-H100-80GB-HBM3",
    "H200": "NVIDIA-H200",
    "L4": "NVIDIA-L4",
    "L40S": "NVIDIA-L40S",
    "T4": "Tesla-T4",
}
# By cloud, then by TYPE, or TYPE:COUNT where that decides.
SELECTORS: dict[str, dict[str, dict[str, str]]] = {
    "gke": {one: {"cloud.google.com/gke-accelerator": name} for one, name in GKE.items()},
    "eks": {one: {"karpenter.k8s.aws/instance-gpu-name": one.lower()} for one in KARPENTER}
    | {one: {"karpenter.k8s.aws/instance-family": f} for one, f in KARPENTER_A100.items()},
    "aks": {one: {"node.kubernetes.io/instance-type": size} for one, size in AKS.items()},
    "nvidia": {one: {"nvidia.com/gpu.product": name} for one, name in FEATURE_DISCOVERY.items()},
}
SPOT = {
    "gke": {"cloud.google.com/gke-spot": "true"},
    "eks": {"karpenter.sh/capacity-type": "spot"},
    "aks": {"kubernetes.azure.com/scalesetpriority": "spot"},
}
# Karpenter alone has to be told; elsewhere spot nodes carry a taint or a pool of their own.
ON_DEMAND = {"eks": {"karpenter.sh/capacity-type": "on-demand"}}


def node_resources(job: Job, one: Accelerator) -> dict[str, int]:
    """What Ray counts on a node of this type. The marker is written out: a typed request makes an
    autoscaler start a first node of a type only where its configuration says the type."""
    resources = {"CPU": one.count * job.cluster.cpus_per_worker}
    if one.is_gpu:
        resources |= {"GPU": one.count, one.marker: one.count}
    return resources


def node_labels(job: Job, one: Accelerator) -> dict[str, str]:
    """Ray's labels of a node of this type."""
    labels = {"ray.io/market-type": "spot" if job.cluster.use_spot else "on-demand"}
    return labels | ({"ray.io/accelerator-type": one.type} if one.is_gpu else {})


def group_name(one: Accelerator) -> str:
    """H100:8 -> h100-8."""
    return f"{one.type}-{one.count}".lower()


def memory_gib(one: Accelerator) -> int:
    """Of a node with this many ranks."""
    return one.count * (GPU_RANK_MEMORY_GIB if one.is_gpu else CPU_RANK_MEMORY_GIB)


def node_selector(job: Job, one: Accelerator, cloud: str) -> dict[str, str]:
    """The labels of the cloud's nodes with this type. Raises JobError where none is known."""
    known = SELECTORS[cloud]
    found = known.get(str(one), known.get(one.type)) if one.is_gpu else {}
    if found is None:
        raise JobError(
            f"cluster.accelerators: got {one} on {cloud}, which has no node label known here for "
            f"it; {', '.join(known)} have one. Write --node-selector KEY=VALUE, the label of "
            "your nodes."
        )
    if job.cluster.use_spot and cloud not in SPOT:
        raise JobError(
            f"cluster.use_spot: got true on {cloud}, whose spot nodes have no label known here; "
            f"{', '.join(SPOT)} have one. Write --node-selector KEY=VALUE, the label of your nodes."
        )
    return found | (SPOT if job.cluster.use_spot else ON_DEMAND).get(cloud, {})


def tolerations(job: Job, one: Accelerator, cloud: str) -> list[dict[str, str]]:
    """Of the taints that clouds put on nodes with GPUs and on spot nodes."""
    found = []
    if one.is_gpu:
        found.append({"key": gpu_resource(one), "operator": "Exists", "effect": "NoSchedule"})
        if cloud == "aks":
            found.append(_equal("sku", "gpu"))
    if job.cluster.use_spot and cloud in ("gke", "aks"):
        found += [_equal(key, value) for key, value in SPOT[cloud].items()]
    return found


def _equal(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def gpu_resource(one: Accelerator) -> str:
    """What Kubernetes calls the device."""
    return "amd.com/gpu" if one.type in AMD else "nvidia.com/gpu"
