"""Connecting to a Ray cluster: a running one, or the embedded one, which is started first."""

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from orchestration.cluster.signals import handle_endings
from orchestration.errors import JobError, ServiceError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.job import Job
from orchestration.run.phases import Phases

if TYPE_CHECKING:
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack


@contextlib.contextmanager
def open_cluster(
    job: Job,
    log: "Log",
    phases: Phases | None = None,
    *,
    module: str,
    is_training: bool = False,
) -> Iterator["Stack | None"]:
    """Connects to the job's cluster for the block, after starting the services that the job calls
    `local`; -> their stack, if any. module: what the block needs, imported while services start.
    is_training: worker processes for its ranks are started too.

    Raises JobError for a remote cluster, ServiceError if a service does not start or answer.
    """
    from orchestration.stack.local import running_stack
    from orchestration.stack.state import stack_folder

    cluster = job.cluster
    if is_remote(cluster.address):
        raise JobError(
            f"cluster.address: got {cluster.address}; a run is driven from a node of its "
            "cluster. `rayception submit` it, or write cluster.address=local."
        )
    phases = phases or Phases()
    handle_endings()
    with contextlib.ExitStack() as contexts:
        stack = None
        if parts := job.local_services():
            folder = stack_folder()
            num_cpus = max(os.cpu_count() or 1, cluster.accelerator.count * cluster.cpus_per_worker)
            # While the services start, not before: Ray reads its token when it is imported.
            load = partial(import_module, module)
            stack = contexts.enter_context(
                running_stack(folder, parts, num_cpus=num_cpus, log=log, while_starting=load)
            )
            phases.end("stack")
        local_stack = stack if cluster.address == LOCAL else None
        contexts.enter_context(connect(local_stack.ray_address if local_stack else "auto"))
        phases.end("ray")
        kept_stack = local_stack if local_stack and local_stack.kept else None
        if is_training:
            from orchestration.cluster.prestart import fill_pool, prestart_workers

            prestart_workers(job, kept_stack)
        import_module(module)
        phases.end("imports")
        yield stack
        if is_training and kept_stack is not None:
            fill_pool(job, kept_stack)


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Connects to the cluster at `address` (`auto`: this machine's) for the block.

    The workers' output goes only to Ray's logs. Raises ServiceError if no cluster answers there.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ServiceError(
            f"cluster.address: got {address}; no Ray cluster answers there ({reason}). "
            "Start one with `ray start`, or write cluster.address=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
