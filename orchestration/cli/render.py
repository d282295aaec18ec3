"""The command that writes a job as manifests, for KubeRay, `ray up` or Docker: render."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from orchestration.cli.data import AsJson, JobFile, Overrides, read_job
from orchestration.cli.tables import log_line, to_json
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import to_yaml
from orchestration.job.rules import check_choice
from orchestration.manifests.compose import compose
from orchestration.manifests.kuberay import config_map, ray_job
from orchestration.manifests.nodes import CLOUDS
from orchestration.manifests.ray_up import PROVIDERS, cluster_yaml

# Each target's own parameters; those of another target are refused.
PARAMETERS = {
    "kuberay": ("cloud", "name", "secret", "node_selector", "queue", "priority"),
    "ray-up": ("cloud", "zone", "project", "instance_type", "machine_image"),
    "docker": (),
}


def render(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="kuberay, ray-up or docker.")],
    file: JobFile,
    overrides: Overrides = None,
    cloud: Annotated[
        str | None,
        typer.Option(help=f"kuberay: {', '.join(CLOUDS)}. ray-up: {', '.join(PROVIDERS)}."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="The containers' image. Left out: cluster.environment.image.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="kuberay: the run's name. Left out: the job's name and its hash."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(help="kuberay: the Secret with cluster.secrets. Left out: the job's name."),
    ] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="kuberay: replaces the cloud's labels."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="kuberay: Kueue's local queue.")] = None,
    priority: Annotated[str | None, typer.Option(help="kuberay: Kueue's priority class.")] = None,
    zone: Annotated[str | None, typer.Option(help="ray-up: the zone, such as us-east-1a.")] = None,
    project: Annotated[str | None, typer.Option(help="ray-up on gcp: the project's id.")] = None,
    instance_type: Annotated[
        str | None, typer.Option(help="ray-up: the workers' instance type, such as p5.48xlarge.")
    ] = None,
    machine_image: Annotated[
        str | None, typer.Option(help="ray-up: the machine image; needed for GPUs.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="File to write. Left out: stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a job as a KubeRay manifest, a `ray up` cluster or a compose file; starts nothing."""
    check_choice("TARGET", target, tuple(PARAMETERS))
    for owner, parameters in PARAMETERS.items():
        for parameter in parameters:
            if context.params[parameter] and parameter not in PARAMETERS[target]:
                raise JobError(
                    f"--{parameter.replace('_', '-')}: got it for {target}; it is an option of "
                    f"{owner}. Leave it out."
                )
    job = read_job(file, [*(overrides or []), "cluster.address=auto"])
    job, image = _for_containers(job, image)
    documents: list[dict[str, Any]]
    if target == "kuberay":
        run = name or run_name(job)
        manifest = ray_job(
            job,
            cloud=_given_cloud(cloud, CLOUDS),
            image=image,
            name=run,
            secret=secret or job.name,
            node_selector=_parse_labels(node_selector) if node_selector else None,
            queue=queue,
            priority=priority,
        )
        documents = [config_map(job, name=run), manifest]
    elif target == "ray-up":
        cluster = cluster_yaml(
            job,
            provider=_given_cloud(cloud, PROVIDERS),
            image=image,
            zone=zone,
            project=project,
            instance_type=instance_type,
            machine_image=machine_image,
        )
        documents = [cluster]
    else:
        documents = [compose(job, image=image)]
    text = _as_json(documents) if as_json else as_yaml(documents)
    if to is None:
        typer.echo(text, nl=False)
    else:
        to.write_text(text)
        log_line(f"wrote {to}")


def run_name(job: Job) -> str:
    """The same for the same job: a manifest that is applied again resumes its run."""
    return f"{job.name}-{hashlib.sha256(to_yaml(job).encode()).hexdigest()[:8]}"


def as_yaml(documents: list[dict[str, Any]]) -> str:
    return str(yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100))


def _as_json(documents: list[dict[str, Any]]) -> str:
    """One object; a Kubernetes List of several."""
    document = documents[0]
    if len(documents) > 1:
        document = {"apiVersion": "v1", "kind": "List", "items": documents}
    return to_json(document) + "\n"


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """Without anchors; strings of several lines as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.Node:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Plain.add_representer(str, _Plain.represent_str)


def _for_containers(job: Job, image: str | None) -> tuple[Job, str]:
    """(the job without its image, as the containers already run it; that image)."""
    image = image or job.cluster.environment.image
    if not image:
        raise JobError(
            "--image: got nothing; the nodes are containers of an image with the checkout. Build "
            "it with infra/Dockerfile, push it, and name it here or in cluster.environment.image."
        )
    environment = replace(job.cluster.environment, image=None)
    return replace(job, cluster=replace(job.cluster, environment=environment)), image


def _given_cloud(cloud: str | None, choices: tuple[str, ...]) -> str:
    if cloud is None:
        raise JobError(f"--cloud: got nothing; one of {', '.join(choices)}. Name where it runs.")
    return cloud


def _parse_labels(labels: list[str]) -> dict[str, str]:
    pairs = {}
    for label in labels:
        key, separator, value = label.partition("=")
        if not key or not separator:
            raise JobError(f"--node-selector: got {label!r}; KEY=VALUE. Write a node's label so.")
        pairs[key] = value
    return pairs
