"""A sweep's runs as submissions of one cluster, some at once; driven from one of its machines.

Each run has a name made of the sweep's digest, so that a sweep that is called again goes on with
the runs that were under way, from their checkpoints.
"""

import contextlib
import time
from collections.abc import Sequence

import ray

from orchestration.cluster.jobs_api import ENDED_WORDS, JobsClient
from orchestration.cluster.versions import ON_CLUSTER
from orchestration.driver.sweep import Trial, digest
from orchestration.errors import RayceptionError, ServiceError
from orchestration.stack.local import Log
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import finished_children

PAUSE_S = 2.0
MAX_SILENT_S = 300.0  # without an answer of the Jobs API


def run_some_at_once(
    trials: Sequence[Trial], parent: RunRef, done: dict[str, float], *, limit: int, log: Log
) -> dict[str, float]:
    """Submits what is not done, at most `limit` at once, on the connected cluster; -> top-1 by
    trial of all that have finished. An interrupt stops them; each saves first.

    Raises ServiceError where the cluster's Jobs API stays silent.
    """
    cluster = JobsClient(dashboard_url())
    waiting = [(i, one) for i, one in enumerate(trials) if one.key not in done]
    for one in trials:
        if one.key in done:
            log(f"{one.key} has run already, top-1 {done[one.key]:.2f} %")
    running: dict[str, Trial] = {}
    heard = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                number, trial = waiting.pop(0)
                submission = _submit(cluster, trial, parent, f"{digest(trials)[:8]}-{number:03d}")
                running[submission] = trial
                log(f"{number + 1} of {len(trials)}: {trial.key} is submission {submission}")
            time.sleep(PAUSE_S)
            try:
                found = {one.id: one for one in cluster.jobs()}
                heard = time.monotonic()
            except ServiceError:
                if time.monotonic() - heard > MAX_SILENT_S:
                    raise
                continue
            for submission in [one for one in running if found[one].status in ENDED_WORDS]:
                trial = running.pop(submission)
                how = found[submission].status
                log(f"{trial.key} {how.lower()}; see `rayception logs {submission}`")
    finally:
        for submission in running:
            with contextlib.suppress(RayceptionError):
                cluster.stop(submission)
    return finished_children(parent)


def dashboard_url() -> str:
    """Where the connected cluster's Jobs API answers."""
    from ray._private.worker import global_worker

    return f"http://{global_worker.node.address_info['webui_url']}"


def _submit(cluster: JobsClient, trial: Trial, parent: RunRef, name: str) -> str:
    arguments = (
        *("run", str(trial.path), *trial.overrides, ON_CLUSTER),
        *("--name", f"{trial.job.name}-{name}"),
        *("--child-of", parent.run_id, "--trial", trial.key),
    )
    # Inside a submission the checkout is Ray's already, and there is no git to list it again.
    here = ray.get_runtime_context().runtime_env.get("working_dir")
    return cluster.send(
        arguments, name=trial.job.name, parcel=here, environment=trial.job.cluster.environment
    )
