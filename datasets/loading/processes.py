"""Loader processes beside a rank, on torch's DataLoader: decoding does not hold the interpreter
lock that the training loop needs.

Each process makes the rows of its part of every step and sends them through shared memory; the
parts of a step come back in the parts' order, whichever process is faster. A process that dies is
noticed within five seconds (DataLoader's own check), one whose rank dies ends itself as fast.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.errors import LoaderError
from datasets.loading.batch import BatchBuffer
from datasets.loading.positions import part_places
from datasets.loading.views import Reader, TrainViews

FETCH_STEPS = 2  # of a process, ahead of what it decodes
# The rows of a process' part of a step, or what ended its work.
Parcel = BatchBuffer | Exception


class _Parts(IterableDataset[Parcel]):
    """In process w: part w of every step, for ever."""

    def __init__(self, views: TrainViews) -> None:
        self._views = views

    def __iter__(self) -> Iterator[Parcel]:
        info = get_worker_info()
        assert info is not None, "runs in a loader process"
        share = replace(self._views.share, part=info.id, parts=info.num_workers)
        views = replace(self._views, share=share)
        # Decoded in this thread: handing over between threads costs, and nothing else is to be done
        # meanwhile. Steps decoded ahead are DataLoader's.
        reader = Reader(views.store, views.manifest, threads=0)
        try:
            yield from views.steps(reader, steps_ahead=FETCH_STEPS)
        except Exception as error:  # crosses the queue as it is, not as text with a traceback
            error.__cause__ = error.__context__ = None
            yield error.with_traceback(None)
        finally:
            reader.close()


def steps_of_processes(
    views: TrainViews, workers: int, *, steps_ahead: int
) -> Iterator[BatchBuffer]:
    """The rank's rows as `TrainViews.steps` gives them, made by `workers` processes.

    Closing the iterator ends them. Raises StoreError and what else a process met; LoaderError for
    one that died.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # as was asked
        parcels: Any = iter(
            DataLoader(
                _Parts(views),
                batch_size=None,
                num_workers=workers,
                collate_fn=_as_it_is,
                prefetch_factor=steps_ahead,
                worker_init_fn=_leave_at_once,
                # Not fork: the rank has threads and CUDA. Not a fork server: its children would
                # look for the server's death, and outlive a killed rank.
                multiprocessing_context="spawn",
            )
        )
    try:
        for step in count(views.first_step):
            rows = views.empty(views.share.step_samples)
            for part in views.share.split(workers):
                parcel = next(parcels)
                if isinstance(parcel, Exception):
                    raise parcel
                rows.put(np.sort(part_places(part, step, views.order)), parcel)
            yield rows
    except (RuntimeError, OSError, EOFError) as error:
        # DataLoader's word for a death is a RuntimeError; what the dead one was just handing over
        # ends in one of the others.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise LoaderError(
            f"data.loader_workers: got {said!r}; a loader process died. Look for the out-of-memory "
            "killer in the node's log and at the size of /dev/shm; fewer workers, or smaller "
            "data.shuffle.lanes and pieces, need less."
        ) from error
    finally:
        # What an iterator does when nothing refers to it any more; an error on its way does. How a
        # process ends that is not needed any more is nobody's trouble.
        with contextlib.suppress(RuntimeError):
            parcels._shutdown_workers()


def _leave_at_once(worker: int) -> None:
    """Ends a loader process after multiprocessing's own clean-up, and before C++ destructors: under
    the interpreter's end, threads of libraries now and then abort it ("terminate called without
    an active exception", seen in a test)."""
    Finalize(None, os._exit, args=(0,), exitpriority=-100)


def _as_it_is(parcel: Any) -> Any:
    return parcel
