"""Joining a Ray cluster: one that runs, or the embedded one, started first."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from orchestration.errors import JobError, ServiceError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.job import Job
from orchestration.run.phases import Phases

if TYPE_CHECKING:
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack


@contextlib.contextmanager
def on_cluster(
    job: Job, log: "Log", phases: Phases | None = None, *, is_training: bool = False
) -> Iterator["Stack | None"]:
    """The job's cluster, joined for the block; what the job calls local is started before.
    is_training: its ranks begin soon, and import meanwhile.

    Raises JobError for a cluster elsewhere, ServiceError where one does not start or answer.
    """
    from orchestration.stack.local import using
    from orchestration.stack.state import stack_folder

    if is_remote(job.cluster.address):
        raise JobError(
            f"cluster.address: got {job.cluster.address}; a run is driven from a node of its "
            "cluster. `rayception submit` it, or write cluster.address=local."
        )
    phases = phases or Phases()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    with contextlib.ExitStack() as held:
        stack = None
        if job.uses():
            folder = stack_folder()
            cluster = job.cluster
            num_cpus = max(os.cpu_count() or 1, cluster.accelerator.count * cluster.cpus_per_worker)
            log(f"starting {', '.join(sorted(job.uses()))} (data in {folder})")
            # Beside the services' start, not before it: Ray takes its token at its import.
            load = partial(import_module, "orchestration.driver.driver")
            up = using(folder, job.uses(), num_cpus=num_cpus, log=log, meanwhile=load)
            stack = held.enter_context(up)
            phases.end("stack")
        address = stack.ray_address if job.cluster.address == LOCAL and stack else "auto"
        held.enter_context(joined(address))
        phases.end("ray")
        kept = stack if stack is not None and stack.kept and job.cluster.address == LOCAL else None
        if is_training:
            from orchestration.cluster.prestart import fill_pool, prestart_workers

            prestart_workers(job, kept)
        import_module("orchestration.driver.driver")
        phases.end("imports")
        yield stack
        if is_training and kept is not None:
            fill_pool(job, kept)


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Joins the cluster at an address, `auto` for this machine's, for the block. Workers' output
    goes to Ray's logs, not here. Raises ServiceError where there is none or it does not answer."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ServiceError(
            f"cluster.address: got {address}; no Ray cluster answers there ({first}). "
            "Start one with `ray start`, or write cluster.address=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
