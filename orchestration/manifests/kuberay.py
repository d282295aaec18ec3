"""A job for KubeRay: a RayJob (ray.io/v1) and the ConfigMap with the job's YAML. Pure.

No secret is written: pods take each name of `cluster.secrets` from a Kubernetes secret. The image
contains the checkout (infra/Dockerfile).
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from orchestration.errors import JobError
from orchestration.job.accelerators import Accelerator
from orchestration.job.job import Job
from orchestration.job.load import to_yaml
from orchestration.job.rules import check_choice
from orchestration.manifests import nodes

JOB_FILE = "/etc/rayception/job.yaml"
PROGRAM = "python -m orchestration.cli"
MAX_NAME = 47  # KubeRay derives the names of clusters and services from a RayJob's


def config_map(job: Job, *, name: str) -> dict[str, Any]:
    """The job's whole YAML, which the head mounts."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"job.yaml": to_yaml(job)},
    }


def ray_job(
    job: Job,
    *,
    cloud: str,
    image: str,
    name: str,
    secret: str,
    node_selector: Mapping[str, str] | None = None,
    queue: str | None = None,
    priority: str | None = None,
) -> dict[str, Any]:
    """The RayJob that trains `job` as the run `name`, which each new cluster resumes.

    The parameters are the options of `render kuberay`. secret: the Kubernetes secret with the
    values of `cluster.secrets`. node_selector: replaces the cloud's own, for the workers. queue,
    priority: Kueue's. Raises JobError: an invalid name, an unknown cloud, a type or spot without a
    known selector.
    """
    check_choice("--cloud", cloud, nodes.CLOUDS)
    if not re.fullmatch(rf"[a-z][a-z0-9-]{{0,{MAX_NAME - 2}}}[a-z0-9]", name):
        raise JobError(
            f"--name: got {name!r}; KubeRay takes lower-case letters, digits and inner hyphens, "
            f"a letter first, at most {MAX_NAME}. Give another --name."
        )
    choices = list(dict.fromkeys(job.cluster.choices))
    is_autoscaled = job.cluster.is_elastic or len(choices) > 1
    groups = []
    for index, accelerator in enumerate(choices):
        selector = node_selector or nodes.node_selector(job, accelerator, cloud)
        min_replicas = job.cluster.min_nodes if len(choices) == 1 else 0
        groups.append(
            {
                "groupName": nodes.group_name(accelerator),
                "replicas": min_replicas,
                "minReplicas": min_replicas,
                "maxReplicas": job.cluster.max_nodes,
                "priority": len(choices) - index,  # the first choice has the highest
                "labels": nodes.node_labels(job, accelerator),
                "resources": {
                    key: str(value) for key, value in nodes.node_resources(job, accelerator).items()
                },
                "rayStartParams": {},
                "template": _worker_pod(job, accelerator, cloud, image, secret, selector),
            }
        )
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": is_autoscaled,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _head_pod(job, cloud, image, secret, name),
        },
        "workerGroupSpecs": groups,
    }
    if is_autoscaled:  # v2 supports labels and group priorities
        cluster["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 300}
    labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}
    metadata: dict[str, Any] = {"name": name}
    if any(labels.values()):
        metadata["labels"] = {key: value for key, value in labels.items() if value}
    if queue and is_autoscaled:  # without it, Kueue refuses a RayJob with an autoscaler
        metadata["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            # No shell operators: KubeRay pastes it into a shell command of another pod. PYTHONPATH
            # names the checkout.
            "entrypoint": f"{PROGRAM} run {JOB_FILE} --name {name}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": 3,  # a new cluster each time, which resumes the run of this name
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": cluster,
        },
    }


def _worker_pod(
    job: Job,
    accelerator: Accelerator,
    cloud: str,
    image: str,
    secret: str,
    selector: Mapping[str, str],
) -> dict[str, Any]:
    memory_gib = nodes.memory_gib(accelerator)
    limits = {"memory": f"{memory_gib}Gi"}
    if accelerator.is_gpu:
        limits[nodes.gpu_resource(accelerator)] = str(accelerator.count)
    cpus = str(nodes.node_resources(job, accelerator)["CPU"])
    pod = _pod(job, image, secret, nodes.NODE_VARIABLES, name="worker", shm_gib=memory_gib // 2)
    # An evicted pod drains its Ray node, and waits until its ranks have checkpointed and stopped.
    drain = f"{PROGRAM} drain here --notice {nodes.GRACE_S - 20} --address auto --wait"
    pod["containers"][0] |= {
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", drain]}}},
        # No CPU limit: decoding threads may use the node's spare cores.
        "resources": {"requests": {"cpu": cpus, **limits}, "limits": limits},
        **_probes(nodes.RAYLET_HEALTH_URL),
    }
    if selector:
        pod["nodeSelector"] = dict(selector)
    if tolerations := nodes.tolerations(job, accelerator, cloud):
        pod["tolerations"] = tolerations
    return {"spec": pod}


def _head_pod(job: Job, cloud: str, image: str, secret: str, name: str) -> dict[str, Any]:
    variables = nodes.NODE_VARIABLES | nodes.HEAD_VARIABLES
    pod = _pod(job, image, secret, variables, name="head", shm_gib=2)
    container = pod["containers"][0]
    container["volumeMounts"].append({"name": "job", "mountPath": JOB_FILE.rpartition("/")[0]})
    pod["volumes"].append({"name": "job", "configMap": {"name": name}})
    resources = {"cpu": "2", "memory": "8Gi"}
    container["resources"] = {"requests": resources, "limits": resources}
    container |= _probes(nodes.RAYLET_HEALTH_URL, nodes.GCS_HEALTH_URL)
    if cloud in nodes.ON_DEMAND:  # a run cannot continue without its head
        pod["nodeSelector"] = nodes.ON_DEMAND[cloud]
    return {"spec": pod}


def _pod(
    job: Job, image: str, secret: str, variables: dict[str, str], *, name: str, shm_gib: int
) -> dict[str, Any]:
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    for key in job.cluster.secrets:
        env.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return {
        "restartPolicy": "Never",  # KubeRay and autoscaler v2 replace pods themselves
        "terminationGracePeriodSeconds": nodes.GRACE_S,
        "containers": [
            {
                "name": f"ray-{name}",
                "image": image,
                "workingDir": nodes.WORKING_DIR,
                "env": env,
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}}],
    }


def _probes(*urls: str) -> dict[str, Any]:
    """Ready after 10 s at the earliest; replaced after a minute without an answer."""
    command = " && ".join(f"wget --tries 1 -T 2 -q -O- {url} | grep success" for url in urls)
    probe = {"exec": {"command": ["bash", "-c", command]}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "readinessProbe": {**probe, "initialDelaySeconds": 10, "failureThreshold": 12},
        "livenessProbe": {**probe, "initialDelaySeconds": 60, "failureThreshold": 12},
    }
