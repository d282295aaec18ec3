"""A job as KubeRay takes it: a RayJob (ray.io/v1) and the ConfigMap with the job's YAML. Pure.

No secret is written: pods take each name of `cluster.secrets` from a Kubernetes secret. The image
carries the checkout (infra/Dockerfile).
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from orchestration.errors import JobError
from orchestration.job.accelerators import Accelerator
from orchestration.job.job import Job
from orchestration.job.load import to_yaml
from orchestration.job.rules import choose
from orchestration.manifests import nodes

JOB_FILE = "/etc/rayception/job.yaml"
PROGRAM = ("python", "-m", "orchestration.cli")
MAX_NAME = 47  # KubeRay makes the names of clusters and services from a RayJob's
HEAD = {"cpu": "2", "memory": "8Gi"}


def config_map(job: Job, *, name: str) -> dict[str, Any]:
    """The job's whole YAML, for the head to mount."""
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
    """The RayJob that trains `job` as the run `name`, which each new cluster goes on with.

    secret: the Kubernetes secret with the values of `cluster.secrets`. node_selector: in the place
    of the cloud's own, for the workers. queue, priority: Kueue's.
    Raises JobError: a name or cloud that there is not, a type or spot without a known selector.
    """
    choose("--cloud", cloud, nodes.CLOUDS)
    if not re.fullmatch(rf"[a-z][a-z0-9-]{{0,{MAX_NAME - 2}}}[a-z0-9]", name):
        raise JobError(
            f"--name: got {name!r}; KubeRay takes lower-case letters, digits and inner hyphens, "
            f"a letter first, at most {MAX_NAME}. Give another --name."
        )
    choices = list(dict.fromkeys(job.cluster.choices))
    scales = job.cluster.is_elastic or len(choices) > 1
    groups = []
    for rank, one in enumerate(choices):
        selector = (
            nodes.node_selector(job, one, cloud) if node_selector is None else dict(node_selector)
        )
        template = _worker_pod(job, one, cloud, image, secret, selector)
        least = job.cluster.min_nodes if len(choices) == 1 else 0
        groups.append(_worker_group(job, one, template, least=least, priority=len(choices) - rank))
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scales,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _head_pod(job, cloud, image, secret, name),
        },
        "workerGroupSpecs": groups,
    }
    if scales:  # the second version knows labels and the groups' priorities
        cluster["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 300}
    labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}
    metadata: dict[str, Any] = {"name": name}
    if any(labels.values()):
        metadata["labels"] = {key: value for key, value in labels.items() if value}
    if queue and scales:  # else Kueue refuses a RayJob with an autoscaler
        metadata["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            # Bare words: KubeRay puts them into a shell of another pod. PYTHONPATH names the place.
            "entrypoint": f"{' '.join(PROGRAM)} run {JOB_FILE} --name {name}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": 3,  # a new cluster each time, which goes on with the run of this name
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": cluster,
        },
    }


def _worker_group(
    job: Job, one: Accelerator, template: dict[str, Any], *, least: int, priority: int
) -> dict[str, Any]:
    return {
        "groupName": nodes.group_name(one),
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": job.cluster.max_nodes,
        "priority": priority,  # the first choice has the highest
        "labels": nodes.node_labels(job, one),
        "resources": {key: str(value) for key, value in nodes.node_resources(job, one).items()},
        "rayStartParams": {},
        "template": template,
    }


def _worker_pod(
    job: Job, one: Accelerator, cloud: str, image: str, secret: str, selector: dict[str, str]
) -> dict[str, Any]:
    memory = f"{nodes.memory_gib(one)}Gi"
    gpus = {nodes.gpu_resource(one): str(one.count)} if one.is_gpu else {}
    cpus = str(nodes.node_resources(job, one)["CPU"])
    pod = _pod(
        job, image, secret, nodes.EVERYWHERE, name="worker", shm_gib=nodes.memory_gib(one) // 2
    )
    # A pod that is evicted says so to Ray, and waits until its ranks have saved and left.
    left = f"{' '.join(PROGRAM)} drain here --notice {nodes.GRACE_S - 20} --address auto --wait"
    pod["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["bash", "-c", left]}}}
    # No limit on the CPU: decoding threads may use what the node has left.
    pod["containers"][0] |= {
        "resources": {
            "requests": {"cpu": cpus, "memory": memory, **gpus},
            "limits": {"memory": memory, **gpus},
        },
        **_probes("http://localhost:52365/api/local_raylet_healthz"),
    }
    tolerations = nodes.tolerations(job, one, cloud)
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = tolerations
    return {"spec": pod}


def _head_pod(job: Job, cloud: str, image: str, secret: str, name: str) -> dict[str, Any]:
    pod = _pod(job, image, secret, nodes.EVERYWHERE | nodes.ON_HEAD, name="head", shm_gib=2)
    container = pod["containers"][0]
    container["volumeMounts"].append({"name": "job", "mountPath": JOB_FILE.rpartition("/")[0]})
    pod["volumes"].append({"name": "job", "configMap": {"name": name}})
    container |= {
        "resources": {"requests": dict(HEAD), "limits": dict(HEAD)},
        **_probes(
            "http://localhost:52365/api/local_raylet_healthz",
            "http://localhost:8265/api/gcs_healthz",
        ),
    }
    if cloud in nodes.ON_DEMAND:  # the head is what a run cannot do without
        pod["nodeSelector"] = dict(nodes.ON_DEMAND[cloud])
    return {"spec": pod}


def _pod(
    job: Job, image: str, secret: str, variables: dict[str, str], *, name: str, shm_gib: int
) -> dict[str, Any]:
    env: list[dict[str, Any]] = [{"name": key, "value": one} for key, one in variables.items()]
    for key in job.cluster.secrets:
        env.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return {
        "restartPolicy": "Never",  # the second autoscaler and KubeRay replace pods themselves
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
    """Ready after 10 s at the earliest, replaced when it has not answered for a minute."""
    asked = " && ".join(f"wget --tries 1 -T 2 -q -O- {url} | grep success" for url in urls)
    probe = {"exec": {"command": ["bash", "-c", asked]}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "readinessProbe": {**probe, "initialDelaySeconds": 10, "failureThreshold": 12},
        "livenessProbe": {**probe, "initialDelaySeconds": 60, "failureThreshold": 12},
    }
