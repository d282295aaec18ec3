"""How a run that is not complete ends in MLflow; light, for whoever stops it may wait."""

import contextlib

from datasets.errors import StoreError
from datasets.storage.store import Store
from orchestration.errors import ServiceError
from orchestration.run.checkpoint import checkpoint_tags
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import close_run


def abort_run(store: Store, run: RunRef, run_url: str, status: str, tags: dict[str, str]) -> None:
    """Ends a run that is not complete, FAILED or KILLED, and leaves the pictures of what it did;
    where MLflow is away, the outbox remembers it. Whatever else is refused, the status is set:
    storage that is away may be what ended it. Raises StoreError where MLflow is away too."""
    with contextlib.suppress(StoreError):
        tags = tags | checkpoint_tags(store, run_url)
    try:
        close_run(run, status, tags)
    except ServiceError:
        Outbox(store, run_url).keep_end(status, tags)
        return
    from orchestration.driver.run_end import (
        log_plots,  # matplotlib: after the status, which hurries
    )

    with contextlib.suppress(ServiceError, StoreError):
        log_plots(store, run, run_url)
