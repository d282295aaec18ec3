"""Which samples of a step are whose: positions of a rank's micro-batches, and its parts' places.

Processes take turns with their rank's lanes, so that a window is fetched once. Where the lanes do
not divide evenly over them, each takes an equal number of samples instead, and a lane at a border
is read by both neighbours: more bytes, the same batches. Pure.
"""

import numpy as np

from datasets.loading.share import Share
from datasets.order import Ints, Order, micro_batch_positions


def rank_positions(share: Share, step: int) -> Ints:
    """Global positions of the rank's micro-batches: int64 (micro-batches, micro_batch_size)."""
    rows = [
        micro_batch_positions(
            step, j, global_batch=share.global_batch_size, micro_batch=share.micro_batch_size
        )
        for j in share.indices
    ]
    return np.stack(rows) if rows else np.empty((0, share.micro_batch_size), dtype=np.int64)


def part_places(share: Share, step: int, order: Order) -> Ints:
    """The part's places in rank_positions(share, step), flattened: by epoch, lane, position."""
    positions = rank_positions(share, step).ravel()
    lanes = positions % order.num_samples % order.num_lanes
    sequence = np.lexsort((positions, lanes, positions // order.num_samples))
    if share.has_whole_lanes(order.num_lanes):
        turns = lanes[sequence] // share.stride(order.num_lanes) % share.parts
        mine = sequence[turns == share.part]
    else:
        mine = np.array_split(sequence, share.parts)[share.part]
    return np.asarray(mine, dtype=np.int64)
