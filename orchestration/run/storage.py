"""The job's object store, for our client and as Ray Train's storage path."""

from urllib.parse import unquote, urlencode, urlsplit

from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store, StoreConfig
from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.plan import ShardShape
from orchestration.stack.services import REGION, use_embedded_store
from orchestration.stack.state import Stack, load_stack, stack_folder


def build_store_config(job: Job, stack: Stack | None) -> StoreConfig:
    """Access to the job's s3:// URLs; `local` is the embedded stack's store."""
    storage = job.storage
    if storage.endpoint_url == LOCAL:
        assert stack is not None, "a job with a local store has a stack"
        return StoreConfig(endpoint_url=stack.url("s3"), region=REGION, addressing="path")
    return StoreConfig(
        endpoint_url=storage.endpoint_url,
        region=storage.region,
        anonymous=storage.anonymous,
        addressing=storage.addressing,
    )


def ray_path(url: str, config: StoreConfig) -> str:
    """`url` for Ray Train, with the S3 endpoint in the query, as pyarrow takes it. (A filesystem
    object would be pickled with the credentials, which stay in the environment this way.)"""
    if not url.startswith("s3://"):
        return unquote(url.removeprefix("file://"))
    query = {}
    if config.endpoint_url:
        endpoint = urlsplit(config.endpoint_url)
        query = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    if config.region:
        query["region"] = config.region
    return f"{url}?{urlencode(query, safe=':')}" if query else url


def read_split_sizes(job: Job) -> tuple[int, int, ShardShape]:
    """(training samples, validation samples, shape of the training shards), from the manifests.

    Raises JobError if they are in an embedded store that is not running; DataError, StoreError.
    """
    data = job.data
    stack = load_stack(stack_folder())
    if job.storage.endpoint_url == LOCAL and data.train.startswith("s3://"):
        if stack is None or not stack.is_up("s3"):
            raise JobError(
                "data.train_samples: got nothing, and the embedded store that holds the manifest "
                "is down; planning needs both splits' sizes. State data.train_samples and "
                "data.val_samples, or run `rayception stack up` first."
            )
        use_embedded_store(stack.secrets)
    store = Store(build_store_config(job, stack))
    train, val = (load_manifest(store, url, verify=False) for url in (data.train, data.val))
    return train.num_samples, val.num_samples, shard_shape(train)


def shard_shape(manifest: Manifest) -> ShardShape:
    return ShardShape(
        manifest.size_bytes / manifest.num_samples, int(manifest.samples_per_shard.max())
    )
