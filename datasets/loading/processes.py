"""Loader processes beside a rank, on torch's DataLoader: decoding then does not hold the
interpreter lock that the training loop needs.

Each process decodes its part of every step and sends it through shared memory; the parts come back
in order, whichever process is faster. DataLoader notices within five seconds that a process died,
and a process as fast that its rank did; it then ends itself.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import tee
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.errors import LoaderError
from datasets.loading.batch import BatchBuffer
from datasets.loading.share import STEPS_AHEAD
from datasets.loading.views import Reader, TrainDecoder
from datasets.order import Ints
from datasets.storage.socket_folder import socket_folder

FETCH_STEPS = 2  # of a process, ahead of decoding
# (rows of the rank's batch, the samples that belong there), or what ended the process's work
Part = tuple[Ints, BatchBuffer] | Exception


class _Parts(IterableDataset[Part]):
    """In process w: part w of every step, endlessly."""

    def __init__(self, decoder: TrainDecoder) -> None:
        self._decoder = decoder

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        assert info is not None, "runs in a loader process"
        share = self._decoder.share.split(info.num_workers)[info.id]
        decoder = replace(self._decoder, share=share)
        # Decodes in this thread, which has nothing else to do: a handover between threads costs.
        # Parts decoded ahead are DataLoader's.
        reader = Reader(decoder, threads=0)
        to_decode, to_send = tee(decoder.plans())
        compact = (replace(plan, rows=np.arange(len(plan.rows))) for plan in to_decode)
        ahead = FETCH_STEPS * share.step_samples // share.parts
        try:
            buffers = reader.batches(compact, ahead=ahead)
            for plan in to_send:
                yield plan.rows, next(buffers)
        except Exception as error:  # sent as it is, not as DataLoader's text of a traceback
            error.__cause__ = error.__context__ = None
            yield error.with_traceback(None)
        finally:
            reader.close()


def batches_of_processes(decoder: TrainDecoder, workers: int) -> Generator[BatchBuffer, None, None]:
    """The rank's batch of each step, decoded by `workers` processes, which end with the iterator.

    Raises what a process raised (StoreError), and LoaderError for one that died.
    """
    # DataLoader's processes pass tensors on through sockets: in pymp-12345678/listener-12345678.
    tempfile.tempdir = socket_folder(rest_bytes=40)
    with warnings.catch_warnings():
        # The number of processes is the job's choice.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        parts: Any = iter(
            DataLoader(
                _Parts(decoder),
                batch_size=None,
                num_workers=workers,
                collate_fn=_identity,
                prefetch_factor=STEPS_AHEAD,
                worker_init_fn=_exit_at_once,
                # Not fork: the rank has threads and CUDA. Not a fork server: its children watch
                # the server, and would outlive a killed rank.
                multiprocessing_context="spawn",
            )
        )
    try:
        while True:
            batch = decoder.allocate(decoder.share.step_samples)
            for _ in range(workers):
                part = next(parts)
                if isinstance(part, Exception):
                    raise part
                rows, buffer = part
                batch.copy_from(buffer, rows)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        # DataLoader reports a death as a RuntimeError; a death in the middle of sending is one of
        # the others.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise LoaderError(
            f"data.loader_workers: got {message!r}; a loader process died. Look for the "
            "out-of-memory killer in the node's log and at the size of /dev/shm; fewer workers, or "
            "smaller data.shuffle.lanes and pieces, need less."
        ) from error
    finally:
        # The iterator does this when it is collected, which an error's traceback can delay. How a
        # process that is no longer needed ends does not matter.
        with contextlib.suppress(RuntimeError):
            parts._shutdown_workers()


def _exit_at_once(worker: int) -> None:
    """Ends a loader process after multiprocessing's own clean-up and before C++ destructors: at the
    interpreter's end, threads of libraries sometimes abort it ("terminate called without an active
    exception", seen in a test)."""
    Finalize(None, os._exit, args=(0,), exitpriority=-100)


def _identity(part: Any) -> Any:
    return part
