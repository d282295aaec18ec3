"""Checkpoints written in the background: a step waits for a copy of the state, not for storage."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from datasets.storage.store import Store
from orchestration.run.checkpoint import Checkpoint, copy_to_cpu, prune_checkpoints, save_checkpoint


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread, on rank 0."""

    def __init__(
        self, store: Store, run_url: str, *, keep: int, flush_metrics: Callable[[], None]
    ) -> None:
        """flush_metrics: returns when the metrics logged so far are safe; called before each
        checkpoint is written, so that none lacks the metrics of its steps."""
        self._store, self._run_url, self._keep = store, run_url, keep
        self._flush_metrics = flush_metrics
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.last_write_s = 0.0

    def submit(self, state: Checkpoint) -> None:
        """Waits for the previous checkpoint, copies the state and starts to write it.

        Raises StoreError if the previous checkpoint could not be written.
        """
        self.wait()
        # A copy costs a step 10 ms for 70 MB; torch.save of the same would cost 150.
        self._pending = self._executor.submit(self._write, copy_to_cpu(state))

    def wait(self) -> None:
        """Returns when the last checkpoint is written. Raises StoreError if it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()  # bounded, because each call of the store is

    def close(self) -> None:
        """Ends the thread after its current write, whose error only `wait` raises."""
        self._executor.shutdown(wait=True)

    def _write(self, state: Checkpoint) -> None:
        start = time.monotonic()
        self._flush_metrics()
        save_checkpoint(self._store, self._run_url, state)
        self.last_write_s = time.monotonic() - start
        prune_checkpoints(self._store, self._run_url, keep=self._keep)
