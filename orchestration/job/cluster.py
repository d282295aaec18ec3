"""The job's places: cluster, object store, checkpoints, tracking. See job.py."""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.accelerators import Accelerator, parse_accelerator
from orchestration.job.rules import at_least, choose, without_secrets

LOCAL = "local"
SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY", re.I)


def is_remote(address: str) -> bool:
    """Whether a cluster's address is its dashboard's URL."""
    return re.fullmatch(r"https?://[^\s/@]+(/\S*)?", address) is not None


ADDRESSING = ("auto", "path", "virtual")


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What the job's processes have on a cluster besides what its nodes have (Ray's runtime_env).
    No secret: whoever may ask the cluster for its jobs reads these values."""

    # The container image of the cluster's machines, for `render`. (A submitted job runs in the
    # cluster's own: Ray takes an image or a checkout, not both.)
    image: str | None = None
    # Requirements that pip installs on each node before the job starts there.
    pip: list[str] = field(default_factory=list)
    # Environment variables, such as NCCL_DEBUG: INFO.
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.variables:
            if SECRET_NAME.search(name):
                raise JobError(
                    f"cluster.environment.variables: got {name}; a secret is named, never written: "
                    "whoever sees the job sees it. Put the name alone into cluster.secrets, and "
                    "the value into the environment of the cluster's nodes."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where the job runs and on what."""

    # `local`: a Ray of this machine, started for the run. `auto`: the Ray cluster of which this
    # machine is a node (RAY_ADDRESS, or the one that `ray start` made). A URL, such as
    # http://head:8265: the dashboard of the cluster that `submit` sends the job to.
    address: str = LOCAL
    # TYPE:COUNT of one node, e.g. H100:8; CPU:2 is two ranks without a GPU. One rank a device.
    # A list, such as [H100:8, A100:8]: the first that the cluster has room for.
    accelerators: str | list[str] = "CPU:2"
    # Nodes; the number of ranks (world size) is num_nodes x COUNT. {min: 2, max: 4}: as many as
    # there are, between the two; the run goes on with another number when machines come and go.
    num_nodes: int | dict[str, int] = 1
    # Ranks on spot machines alone: nodes that carry the label ray.io/market-type: spot.
    use_spot: bool = False
    # CPU cores of one rank: its compute threads on a CPU, its decoding threads beside a GPU.
    cpus_per_worker: int = 1
    # How often a dead worker or node may be replaced, each time from the last checkpoint. A node
    # that was taken away with notice does not count.
    max_failures: int = 3
    # How long the job waits for room on the cluster that other work has now; 0: not at all.
    wait_s: int = 86_400
    environment: Environment = field(default_factory=Environment)
    # What an hour of one accelerator costs, by its type: {H100: 2.99, A100-80G: 1.79}. Where it is
    # stated, a run says what it has cost so far.
    dollars_per_hour: dict[str, float] = field(default_factory=dict)
    # Names of environment variables that every node of the job must have, such as
    # AWS_SECRET_ACCESS_KEY. Their values stay there.
    secrets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        choices = self.choices
        if not choices:
            raise JobError(
                "cluster.accelerators: got an empty list; a job runs on something. Write H100:8."
            )
        if len({one.is_gpu for one in choices}) > 1:
            raise JobError(
                f"cluster.accelerators: got {', '.join(map(str, choices))}; GPUs and CPUs round "
                "differently, so the result would depend on which there was. Name GPUs, or CPUs."
            )
        if not is_remote(self.address):
            choose("cluster.address", self.address, (LOCAL, "auto", "http://HEAD:8265"))
        if isinstance(self.num_nodes, dict) and set(self.num_nodes) != {"min", "max"}:
            raise JobError(
                f"cluster.num_nodes: got {dict(self.num_nodes)}; a number, or {{min: 2, max: 4}}. "
                "Write it so."
            )
        at_least("cluster.num_nodes", self.min_nodes, 1)
        if self.max_nodes < self.min_nodes:
            raise JobError(
                f"cluster.num_nodes: got min {self.min_nodes} above max {self.max_nodes}; min is "
                "the smaller one. Exchange them."
            )
        at_least("cluster.cpus_per_worker", self.cpus_per_worker, 1)
        at_least("cluster.max_failures", self.max_failures, 0)
        at_least("cluster.wait_s", self.wait_s, 0)
        for name, price in self.dollars_per_hour.items():
            parse_accelerator(f"{name}:1")  # a type that there is
            if not price >= 0:
                raise JobError(
                    f"cluster.dollars_per_hour.{name}: got {price}; a price is not below 0. "
                    "Write what an hour of one costs."
                )
        for name in self.secrets:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise JobError(
                    "cluster.secrets: got an entry that is no name of an environment variable; "
                    "names alone stand there. Take the value out, and change that secret."
                )

    @property
    def choices(self) -> list[Accelerator]:
        """What the job may run on, the best first."""
        given = [self.accelerators] if isinstance(self.accelerators, str) else self.accelerators
        return [parse_accelerator(one) for one in given]

    @property
    def accelerator(self) -> Accelerator:
        """The first choice; on a cluster, the one that was chosen (room.settle)."""
        return self.choices[0]

    def price_of(self, accelerator: Accelerator) -> float | None:
        """Dollars an hour of one, where the job says it."""
        for name, price in self.dollars_per_hour.items():
            if parse_accelerator(f"{name}:1").type == accelerator.type:
                return price
        return None

    @property
    def min_nodes(self) -> int:
        return self.num_nodes if isinstance(self.num_nodes, int) else self.num_nodes["min"]

    @property
    def max_nodes(self) -> int:
        return self.num_nodes if isinstance(self.num_nodes, int) else self.num_nodes["max"]

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes != self.max_nodes


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
    # The name under which the final model is registered; the version with the highest top-1 of one
    # held-out split has the alias `champion`. Left out: not registered.
    register: str | None = None

    def __post_init__(self) -> None:
        if self.uri != LOCAL and not re.match(r"https?://[^\s/@]+(/\S*)?$", self.uri):
            raise JobError(
                f"tracking.uri: got {without_secrets(self.uri)!r}; `local`, or the http(s) URL "
                "of an MLflow server without credentials in it. Write it so, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it asks for them."
            )
        at_least("tracking.log_every_steps", self.log_every_steps, 1)
        if self.register is not None and not re.fullmatch(r"\w[^/:\n]*", self.register):
            raise JobError(
                f"tracking.register: got {self.register!r}; a name in the model registry begins "
                "with a letter or digit and has no / or :. Write one such as flowers-v3."
            )
