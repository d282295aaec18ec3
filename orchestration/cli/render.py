"""The verb that writes a job down for KubeRay, for `ray up` or for Docker; starts nothing."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from orchestration.cli.data import AsJson
from orchestration.cli.tables import echo
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import load_job, to_yaml
from orchestration.job.rules import choose
from orchestration.manifests.compose import compose
from orchestration.manifests.kuberay import config_map, ray_job
from orchestration.manifests.nodes import CLOUDS
from orchestration.manifests.ray_up import PROVIDERS, cluster_yaml

# The options of each target besides --image; those of another one are refused.
OPTIONS = {
    "kuberay": ("cloud", "name", "secret", "node-selector", "queue", "priority"),
    "ray-up": ("cloud", "zone", "project", "instance-type", "machine-image"),
    "docker": (),
}


def render(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="kuberay, ray-up or docker.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option(help=f"kuberay: {', '.join(CLOUDS)}. ray-up: {', '.join(PROVIDERS)}."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The containers' image. Left out: cluster.environment.image."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="kuberay: the run's name. Left out: the job's and 8 digits of its hash."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(help="kuberay: the secret with cluster.secrets. Left out: the job's name."),
    ] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="kuberay: in place of all the cloud's labels."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="kuberay: Kueue's local queue.")] = None,
    priority: Annotated[str | None, typer.Option(help="kuberay: Kueue's priority class.")] = None,
    zone: Annotated[str | None, typer.Option(help="ray-up: such as us-east-1a.")] = None,
    project: Annotated[str | None, typer.Option(help="ray-up on gcp: the project's id.")] = None,
    instance_type: Annotated[
        str | None, typer.Option(help="ray-up: the workers' machine, such as p5.48xlarge.")
    ] = None,
    machine_image: Annotated[
        str | None, typer.Option(help="ray-up: what machines boot; needed for GPUs.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="A file, in place of the output.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a job down as a KubeRay manifest, a `ray up` cluster or a compose file."""
    choose("TARGET", target, tuple(OPTIONS))
    given = {
        "cloud": cloud, "name": name, "secret": secret, "node-selector": node_selector,
        "queue": queue, "priority": priority, "zone": zone, "project": project,
        "instance-type": instance_type, "machine-image": machine_image,
    }  # fmt: skip
    for option, value in given.items():
        if value and option not in OPTIONS[target]:
            owner = next(one for one, options in OPTIONS.items() if option in options)
            raise JobError(f"--{option}: got it for {target}; it is {owner}'s. Leave it out.")
    job, image = _for_containers(
        load_job(file, [*(overrides or []), "cluster.address=auto"]), image
    )
    documents: list[dict[str, Any]]
    if target == "kuberay":
        run = name or run_name(job)
        manifest = ray_job(
            job,
            cloud=_cloud(cloud, CLOUDS),
            image=image,
            name=run,
            secret=secret or job.name,
            node_selector=_pairs(node_selector) if node_selector else None,
            queue=queue,
            priority=priority,
        )
        documents = [config_map(job, name=run), manifest]
    elif target == "ray-up":
        cluster = cluster_yaml(
            job,
            provider=_cloud(cloud, PROVIDERS),
            image=image,
            zone=zone,
            project=project,
            instance_type=instance_type,
            machine_image=machine_image,
        )
        documents = [cluster]
    else:
        documents = [compose(job, image=image)]
    text = as_json_text(documents) if as_json else as_yaml(documents)
    if to is None:
        typer.echo(text, nl=False)
    else:
        to.write_text(text)
        echo(f"wrote {to}")


def run_name(job: Job) -> str:
    """The same for the same job: applied again, it goes on with its run."""
    return f"{job.name}-{hashlib.sha256(to_yaml(job).encode()).hexdigest()[:8]}"


def as_yaml(documents: list[dict[str, Any]]) -> str:
    return str(yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100))


def as_json_text(documents: list[dict[str, Any]]) -> str:
    """Several are a Kubernetes List."""
    several = {"apiVersion": "v1", "kind": "List", "items": documents}
    return json.dumps(several if len(documents) > 1 else documents[0], indent=2) + "\n"


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """No anchors, and texts of several lines as they are."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.Node:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Plain.add_representer(str, _Plain.represent_str)


def _for_containers(job: Job, image: str | None) -> tuple[Job, str]:
    """The job less its image, which the containers have already, and that image."""
    found = image or job.cluster.environment.image
    if not found:
        raise JobError(
            "--image: got nothing; the nodes are containers of an image with the checkout. Build "
            "it with infra/Dockerfile, push it, and name it here or in cluster.environment.image."
        )
    environment = replace(job.cluster.environment, image=None)
    return replace(job, cluster=replace(job.cluster, environment=environment)), found


def _cloud(cloud: str | None, known: tuple[str, ...]) -> str:
    if cloud is None:
        raise JobError(f"--cloud: got nothing; one of {', '.join(known)}. Name where it runs.")
    return cloud


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if not pair.partition("=")[0] or "=" not in pair:
            raise JobError(f"--node-selector: got {pair!r}; KEY=VALUE. Write a node's label so.")
    return {key: value for key, _, value in (pair.partition("=") for pair in given)}
