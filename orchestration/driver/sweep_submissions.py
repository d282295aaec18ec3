"""A sweep's trials as submissions to one cluster, several at once, driven from one of its machines.

A run's name contains the sweep's digest: repeating the sweep resumes the runs that were under way,
from their checkpoints.
"""

import contextlib
import time
from collections.abc import Sequence

import ray

from orchestration.cluster.jobs_api import JobsClient
from orchestration.cluster.versions import ON_CLUSTER
from orchestration.driver.sweep import Trial, digest
from orchestration.errors import RayceptionError, ServiceError
from orchestration.stack.local import Log
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import finished_children

POLL_S = 2.0
MAX_SILENT_S = 300.0  # of the Jobs API


def run_concurrently(
    trials: Sequence[Trial], parent: RunRef, done: dict[str, float], *, limit: int, log: Log
) -> dict[str, float]:
    """Submits the trials that are not done to the connected cluster, at most `limit` at once; ->
    top-1 by key of all finished trials. An interrupt stops the submissions, each after a
    checkpoint.

    Raises ServiceError if the cluster's Jobs API stops answering.
    """
    from ray._private.worker import global_worker

    client = JobsClient(f"http://{global_worker.node.address_info['webui_url']}")
    prefix = digest(trials)[:8]
    waiting = [(number, trial) for number, trial in enumerate(trials) if trial.key not in done]
    for trial in trials:
        if trial.key in done:
            log(f"{trial.key} has run already, top-1 {done[trial.key]:.2f} %")
    running: dict[str, Trial] = {}
    answered_at = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                number, trial = waiting.pop(0)
                submission = _submit(client, trial, parent, f"{prefix}-{number:03d}")
                running[submission] = trial
                log(f"{number + 1} of {len(trials)}: {trial.key} is submission {submission}")
            time.sleep(POLL_S)
            try:
                states = {state.id: state for state in client.submissions()}
                answered_at = time.monotonic()
            except ServiceError:
                if time.monotonic() - answered_at > MAX_SILENT_S:
                    raise
                continue
            for submission, trial in list(running.items()):
                state = states.get(submission)
                if state is None:
                    log(f"{trial.key} failed: Ray does not know submission {submission} any more")
                elif state.has_ended:
                    log(f"{trial.key} {state.status.lower()}; see `rayception logs {submission}`")
                else:
                    continue
                del running[submission]
    finally:
        for submission in running:
            with contextlib.suppress(RayceptionError):
                client.stop(submission)
    return finished_children(parent)


def _submit(client: JobsClient, trial: Trial, parent: RunRef, name: str) -> str:
    arguments = (
        *("run", str(trial.path), *trial.overrides, ON_CLUSTER),
        *("--name", f"{trial.job.name}-{name}"),
        *("--child-of", parent.run_id, "--trial", trial.key),
    )
    return client.submit_command(
        arguments,
        name=trial.job.name,
        environment=trial.job.cluster.environment,
        # Uploaded for this submission; there is no git here to list the checkout's files again.
        working_dir=ray.get_runtime_context().runtime_env.get("working_dir"),
    )
