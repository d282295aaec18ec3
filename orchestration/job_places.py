"""The job's places: cluster, object store, checkpoints, tracking. See job.py."""

import re
from dataclasses import dataclass

from orchestration.accelerators import Accelerator, parse_accelerator
from orchestration.errors import JobError
from orchestration.rules import at_least, choose, without_secrets

LOCAL = "local"


def is_remote(address: str) -> bool:
    """Whether a cluster's address is its dashboard's URL."""
    return re.fullmatch(r"https?://[^\s/@]+(/\S*)?", address) is not None


ADDRESSING = ("auto", "path", "virtual")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where the job runs and on what."""

    # `local`: a Ray of this machine, started for the run. `auto`: the Ray cluster of which this
    # machine is a node (RAY_ADDRESS, or the one that `ray start` made). A URL, such as
    # http://head:8265: the dashboard of the cluster that `submit` sends the job to.
    address: str = LOCAL
    # TYPE:COUNT of one node, e.g. H100:8; CPU:2 is two ranks without a GPU. One rank a device.
    accelerators: str = "CPU:2"
    # Nodes; the number of ranks (world size) is num_nodes x COUNT.
    num_nodes: int = 1
    # CPU cores of one rank: its compute threads on a CPU, its decoding threads beside a GPU.
    cpus_per_worker: int = 1
    # How often a dead worker or node may be replaced, each time from the last checkpoint.
    max_failures: int = 3

    def __post_init__(self) -> None:
        parse_accelerator(self.accelerators)
        if not is_remote(self.address):
            choose("cluster.address", self.address, (LOCAL, "auto", "http://HEAD:8265"))
        at_least("cluster.num_nodes", self.num_nodes, 1)
        at_least("cluster.cpus_per_worker", self.cpus_per_worker, 1)
        at_least("cluster.max_failures", self.max_failures, 0)

    @property
    def accelerator(self) -> Accelerator:
        return parse_accelerator(self.accelerators)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """The object store behind every s3:// URL of the job. Credentials are never written here:
    they come from the standard chain (AWS_ACCESS_KEY_ID ..., profiles, instance roles)."""

    # `local`: the embedded store. A URL: an S3-compatible service. Left out: AWS, or what
    # AWS_ENDPOINT_URL says.
    endpoint_url: str | None = None
    region: str | None = None
    # Read public buckets without credentials.
    anonymous: bool = False
    # How a bucket is named in a request: in the path, in the host name, or as botocore decides.
    addressing: str = "auto"

    def __post_init__(self) -> None:
        choose("storage.addressing", self.addressing, ADDRESSING)
        url = self.endpoint_url
        if url not in (None, LOCAL) and not re.match(r"https?://[^/\s@]+(:\d+)?/?$", str(url)):
            raise JobError(
                f"storage.endpoint_url: got {without_secrets(str(url))!r}; `local`, or a URL "
                "such as https://s3.example.org:9000 without path and without credentials. "
                "Write it so, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPolicy:
    """Where the run's state lies, and how often it is written (at each epoch's end anyway)."""

    storage: str = "s3://runs"
    every_steps: int | None = None
    # How many of the newest checkpoints stay; the best by top-1 stays too.
    keep: int = 3

    def __post_init__(self) -> None:
        if not re.match(r"(s3://[^/]+|file:///.+)", self.storage):
            raise JobError(
                f"checkpoint.storage: got {self.storage!r}; s3://BUCKET[/PATH] or file:///PATH. "
                "Name a place that every node can reach."
            )
        if self.every_steps is not None:
            at_least("checkpoint.every_steps", self.every_steps, 1)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """MLflow. User name and password come from MLFLOW_TRACKING_USERNAME and ..._PASSWORD."""

    # `local`: the embedded server. Else the URL of an MLflow tracking server.
    uri: str = LOCAL
    # The experiment's name; left out, the job's.
    experiment: str | None = None
    # Metrics of every step are sent in groups of this many steps.
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        if self.uri != LOCAL and not re.match(r"https?://[^\s/@]+(/\S*)?$", self.uri):
            raise JobError(
                f"tracking.uri: got {without_secrets(self.uri)!r}; `local`, or the http(s) URL "
                "of an MLflow server without credentials in it. Write it so, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it asks for them."
            )
        at_least("tracking.log_every_steps", self.log_every_steps, 1)
