"""The job's services: cluster, object storage, checkpoints, tracking. See job.py."""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.accelerators import Accelerator, parse_accelerator
from orchestration.job.rules import check_choice, check_fields, check_min, redact_url

LOCAL = "local"
# Names of variables that hold secrets. TOKENIZERS_PARALLELISM and KEYBOARD are none.
SECRET_PATTERN = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|TOKEN(?!IZ)|CREDENTIAL|ACCESS_?KEY|API_?KEY|(^|_)KEY$", re.I
)
# Of those that a job writes itself: stored jobs of earlier versions have passed it.
WRITTEN_SECRET_PATTERN = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY", re.I
)
VARIABLE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
SERVICE_URL = r"https?://[^\s/@]+(/\S*)?"  # never with credentials


def is_remote(address: str) -> bool:
    """Whether a cluster's address is the URL of its dashboard."""
    return re.fullmatch(SERVICE_URL, address) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What the job's processes need on a cluster beyond what its nodes provide (Ray's runtime_env).
    Never a secret: anyone who can query the cluster's jobs can read these values."""

    # Container image of the cluster's machines, for `render`. A submitted job runs in the image
    # that the cluster already has, as Ray accepts either an image or a checkout.
    image: str | None = None
    # Requirements that pip installs on each node before the job starts there.
    pip: list[str] = field(default_factory=list)
    # Environment variables by name, such as NCCL_DEBUG: INFO. No secrets.
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.variables:
            if not re.fullmatch(VARIABLE_NAME, name):
                raise JobError(
                    f"cluster.environment.variables: got {name!r}; a variable's name has letters, "
                    "digits and _, and no digit first. Write such a name."
                )
            if WRITTEN_SECRET_PATTERN.search(name):
                raise JobError(
                    f"cluster.environment.variables: got {name}; a secret is named, never written: "
                    "anyone who can see the job can read it. Put only the name into "
                    "cluster.secrets, and the value into the environment of the cluster's nodes."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where the job runs, and on which hardware."""

    # `local`: a Ray on this machine, started for the run. `auto`: the Ray cluster that this machine
    # belongs to (RAY_ADDRESS, or the one that `ray start` created). A URL such as http://head:8265:
    # the dashboard of the cluster that `submit` sends the job to.
    address: str = LOCAL
    # TYPE:COUNT of one node, one rank per device: H100:8, or CPU:2 for two ranks without a GPU.
    # A list such as [H100:8, A100:8]: the first that the cluster has capacity for; GPUs or CPUs.
    accelerators: str | list[str] = "CPU:2"
    # Number of nodes, at least 1; the world size is num_nodes x COUNT. {min: 2, max: 4}: as many as
    # are available in that range; the run shrinks and grows when nodes leave and join.
    num_nodes: int | dict[str, int] = 1
    # Run ranks on spot machines only: nodes with the label ray.io/market-type: spot.
    use_spot: bool = False
    # CPU cores per rank, at least 1: on a CPU, compute threads, on whose number the last bits
    # depend, so that a run keeps it; beside a GPU, decoding threads.
    cpus_per_worker: int = field(default=1, metadata={"min": 1})
    # How many times a dead worker or node may be replaced, each time from the last checkpoint; at
    # least 0. Nodes that were drained with notice do not count.
    max_failures: int = field(default=3, metadata={"min": 0})
    # Longest wait, in seconds, for capacity that other work is using; 0: no wait.
    wait_s: int = field(default=86_400, metadata={"min": 0})
    # How a step's gradients, losses and statistics are summed. `exact`: in one order whatever the
    # number of ranks, so that they all compute the same bits; `fast`: each rank's in turn, then by
    # the backend's all-reduce, equal up to rounding.
    reduction: str = field(default="exact", metadata={"choices": ("exact", "fast")})
    # What the job's processes need beyond what the nodes provide.
    environment: Environment = field(default_factory=Environment)
    # Dollars for an hour of one accelerator, by type: {H100: 2.99}. If stated, runs report costs.
    dollars_per_hour: dict[str, float] = field(default_factory=dict)
    # Names, never values, of environment variables that every node of the job must have, such as
    # AWS_SECRET_ACCESS_KEY.
    secrets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self, "cluster")
        choices = self.choices
        if not choices:
            raise JobError(
                "cluster.accelerators: got an empty list; a job needs at least one type. Write "
                "H100:8."
            )
        if len({choice.is_gpu for choice in choices}) > 1:
            raise JobError(
                f"cluster.accelerators: got {', '.join(map(str, choices))}; GPUs and CPUs round "
                "differently, so the result would depend on which of them was free. Name only "
                "GPUs, or only CPUs."
            )
        if not is_remote(self.address):
            if "@" in self.address:
                raise JobError(
                    f"cluster.address: got {redact_url(self.address)!r}; the dashboard's URL has "
                    "no user and no password. Write http://HEAD:8265."
                )
            check_choice("cluster.address", self.address, (LOCAL, "auto", "http://HEAD:8265"))
        if isinstance(self.num_nodes, dict) and set(self.num_nodes) != {"min", "max"}:
            raise JobError(
                f"cluster.num_nodes: got {dict(self.num_nodes)}; a number, or {{min: 2, max: 4}}. "
                "Write one of the two."
            )
        check_min("cluster.num_nodes", self.min_nodes, 1)
        if self.max_nodes < self.min_nodes:
            raise JobError(
                f"cluster.num_nodes: got min {self.min_nodes} above max {self.max_nodes}; min is "
                "the smaller one. Swap them."
            )
        for type_name, price in self.dollars_per_hour.items():
            parse_accelerator(f"{type_name}:1", field="cluster.dollars_per_hour")
            if not price >= 0:
                raise JobError(
                    f"cluster.dollars_per_hour.{type_name}: got {price}; a price is not below 0. "
                    "Write what an hour of one costs."
                )
        for name in self.secrets:
            if not re.fullmatch(VARIABLE_NAME, name):
                raise JobError(
                    "cluster.secrets: got an entry that is not the name of an environment "
                    "variable; write names only. Remove the value, and change that secret."
                )

    @property
    def choices(self) -> list[Accelerator]:
        """The accelerators that the job can run on, in order of preference."""
        names = [self.accelerators] if isinstance(self.accelerators, str) else self.accelerators
        return [parse_accelerator(name) for name in names]

    @property
    def accelerator(self) -> Accelerator:
        """The first choice; once capacity was found, the chosen one (cluster/capacity.py)."""
        return self.choices[0]

    def hourly_price(self, accelerator: Accelerator) -> float | None:
        """Dollars for an hour of one device, if the job states it."""
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

    # `local`: the embedded store. A URL without credentials: an S3-compatible service.
    # Left out: AWS, or the service that AWS_ENDPOINT_URL names.
    endpoint_url: str | None = None
    # Region of the service; left out, the standard chain decides.
    region: str | None = None
    # Read public buckets without credentials.
    anonymous: bool = False
    # Where a request names the bucket: `path`, `virtual` (host name), or `auto` (botocore decides).
    addressing: str = field(default="auto", metadata={"choices": ("auto", "path", "virtual")})

    def __post_init__(self) -> None:
        check_fields(self, "storage")
        url = self.endpoint_url
        if url not in (None, LOCAL) and not re.match(r"https?://[^/\s@?#]+(/[^\s?#]*)?$", str(url)):
            raise JobError(
                f"storage.endpoint_url: got {redact_url(str(url))!r}; `local`, or a URL "
                "such as https://s3.example.org:9000 without credentials and without query. "
                "Write such a URL, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPolicy:
    """Where checkpoints go, and how often they are written (always at the end of an epoch)."""

    # Folder for runs, reachable from every node: s3://BUCKET[/PATH] or file:///PATH.
    storage: str = "s3://runs"
    # Steps between checkpoints within an epoch, at least 1; left out, none is written there.
    every_steps: int | None = field(default=None, metadata={"min": 1})
    # How many of the newest checkpoints are kept, at least 1; the best by top-1 is kept as well.
    keep: int = field(default=3, metadata={"min": 1})

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")
        if not re.match(r"(s3://[^/@]+(/|$)|file:///.+)", self.storage):
            raise JobError(
                f"checkpoint.storage: got {redact_url(self.storage)!r}; s3://BUCKET[/PATH] or "
                "file:///PATH. Name a place that every node can reach."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """MLflow. User name and password come from MLFLOW_TRACKING_USERNAME and ..._PASSWORD."""

    # `local`: the embedded server; or the http(s) URL of an MLflow server, without credentials.
    uri: str = LOCAL
    # Name of the experiment, at most 500 characters; left out, the job's name.
    experiment: str | None = None
    # Most steps whose metrics are sent together, at least 1; fewer if they take over a second.
    log_every_steps: int = field(default=10, metadata={"min": 1})
    # Name under which the final model is registered; left out, it is not registered. Starts with a
    # letter or digit, without / and :. The alias `champion` marks the version with the highest
    # top-1 on one held-out split.
    register: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "tracking")
        if self.uri != LOCAL and not re.match(f"{SERVICE_URL}$", self.uri):
            raise JobError(
                f"tracking.uri: got {redact_url(self.uri)!r}; `local`, or the http(s) URL "
                "of an MLflow server without credentials in it. Write such a URL, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD if the server asks for them."
            )
        if self.experiment is not None and len(self.experiment) > 500:  # MLflow's limit
            raise JobError(
                f"tracking.experiment: got {len(self.experiment)} characters; at most 500. Write a "
                "shorter name."
            )
        if self.register is not None and not re.fullmatch(r"\w[^/:\n]*", self.register):
            raise JobError(
                f"tracking.register: got {self.register!r}; a name in the model registry begins "
                "with a letter or digit and has no / or :. Write one such as flowers-v3."
            )
