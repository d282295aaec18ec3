"""Which samples a batch is read from, and the rows that they fill. Pure."""

from dataclasses import dataclass

import numpy as np

from datasets.loading.share import Share
from datasets.order import Ints, Order, micro_batch_positions


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """The samples of a batch in the order in which they are read, int64 (n,) each.

    positions: in the training sequence, or in the manifest. rows: of the batch, one per sample.
    """

    positions: Ints
    rows: Ints


def plan_step(share: Share, step: int, order: Order) -> BatchPlan:
    """The share's part of a step, read by epoch, lane and position. Rows are those of the rank's
    micro-batches end to end.

    Parts take turns with the rank's lanes, so that each window is fetched once. If the lanes do not
    divide evenly over the parts, each takes an equal number of samples instead, and two neighbours
    both read the lane at their border: more bytes, the same batches.
    """
    parts = [
        micro_batch_positions(
            step, j, global_batch=share.global_batch_size, micro_batch=share.micro_batch_size
        )
        for j in share.indices
    ]
    positions = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    lanes = positions % order.num_samples % order.num_lanes
    rows = np.lexsort((positions, lanes, positions // order.num_samples))
    if share.has_whole_lanes(order.num_lanes):
        turns = lanes[rows] // share.stride(order.num_lanes) % share.parts
        rows = rows[turns == share.part]
    else:
        rows = np.array_split(rows, share.parts)[share.part]
    return BatchPlan(positions[rows], rows)
