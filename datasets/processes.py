"""Loader processes beside a rank, on torch's DataLoader: decoding does not hold the interpreter
lock that the training loop needs.

Each process makes the views of its part of every step and sends them through shared memory; the
parts of a step come back in the parts' order, whichever process is faster. A process that dies is
noticed within five seconds (DataLoader's own check), one whose rank dies ends itself as fast.
"""

import multiprocessing
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.batch import View
from datasets.errors import LoaderError
from datasets.views import Reader, TrainViews

# (images of the views that have one, the views without them) or what ended the process' work.
Parcel = tuple[Tensor, list[View]] | Exception


class _Parts(IterableDataset[Parcel]):
    """In process w: part w of every step, for ever."""

    def __init__(self, views: TrainViews) -> None:
        self._views = views

    def __iter__(self) -> Iterator[Parcel]:
        info = get_worker_info()
        assert info is not None, "runs in a loader process"
        share = replace(self._views.share, part=info.id, parts=info.num_workers)
        views = replace(self._views, share=share)
        reader = Reader(views.store, views.manifest, threads=1)
        try:
            # One image is decoded while the one before is taken; steps ahead are DataLoader's.
            made = views.steps(reader, fetch_ahead=2, decode_ahead=2)
            step = views.first_step
            while True:
                size = len(share.places(step, views.order))
                yield _parcel([next(made) for _ in range(size)])
                step += 1
        except Exception as error:  # crosses the queue as it is, not as text with a traceback
            error.__cause__ = error.__context__ = None
            yield error.with_traceback(None)
        finally:
            reader.close()


def views_of_processes(views: TrainViews, workers: int, *, steps_ahead: int) -> Iterator[View]:
    """The rank's views as `TrainViews.steps` gives them, made by `workers` processes.

    Closing the iterator ends them. Raises StoreError and what else a process met; LoaderError for
    one that died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in every process
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # as was asked
        parcels = iter(
            DataLoader(
                _Parts(views),
                batch_size=None,
                num_workers=workers,
                collate_fn=_as_it_is,
                prefetch_factor=steps_ahead,
                multiprocessing_context=context,
            )
        )
    try:
        while True:
            try:
                parcel = next(parcels)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise LoaderError(
                    f"data.loader_workers: got {str(error).splitlines()[0]!r}; a loader process "
                    "died. Look for the out-of-memory killer in the node's log; fewer workers, or "
                    "smaller data.shuffle.lanes and pieces, need less."
                ) from error
            if isinstance(parcel, Exception):
                raise parcel
            images, found = parcel
            rows = iter(images)
            for view in found:
                yield view if view.error is not None else replace(view, image=next(rows))
    finally:
        del parcels  # ends the processes


def _parcel(views: list[View]) -> Parcel:
    """One shared-memory tensor for all images: each tensor of its own would cost a file."""
    images = [view.image for view in views if view.image is not None]
    rows = torch.stack(images) if images else torch.empty(0, dtype=torch.uint8)
    return rows, [replace(view, image=None) for view in views]


def _as_it_is(parcel: Any) -> Any:
    return parcel
