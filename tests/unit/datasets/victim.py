"""A training loader that is killed: writes a line for every finished step, from where the lines
end. Run as a process of its own by test_loader_kills.py.

    python -m tests.unit.datasets.victim FILE SPLIT LAST_STEP   (then, on stdin: WORLD_SIZE THREADS)

It imports first and then waits on stdin, so that a test can keep some at hand.
"""

import hashlib
import os
import sys
from pathlib import Path

from datasets.augment import Augment
from datasets.loader import TrainLoader
from datasets.manifest import load_manifest
from datasets.order import Order
from datasets.store import Store

BATCH, MICRO = 48, 8


def lines_of(text: str) -> list[str]:
    """The finished steps: whole lines alone count."""
    return text.split("\n")[:-1]


def main(file: Path, url: str, last: int) -> None:
    manifest = load_manifest(Store(), url)
    order = Order(
        seed=2, samples_per_shard=manifest.samples_per_shard, num_lanes=6, pieces=3, slices=4
    )
    world_size, threads = map(int, sys.stdin.readline().split())
    text = file.read_text() if file.exists() else ""
    step = len(lines_of(text))
    # What a kill left of a line goes, as a step that was not finished.
    file.write_text("".join(f"{line}\n" for line in lines_of(text)))
    loaders = [
        TrainLoader(
            Store(), manifest, order, rank=rank, world_size=world_size, global_batch_size=BATCH,
            micro_batch_size=MICRO, input_size=12, augment=Augment(), threads=threads,
            start_position=step * BATCH,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    with file.open("a") as log:
        for number, of_ranks in zip(range(step, last), zip(*loaders, strict=True), strict=False):
            batches = sorted((b for batches in of_ranks for b in batches), key=lambda b: b.index)
            digest = hashlib.sha256()
            for batch in batches:
                for part in (batch.samples, batch.images.contiguous(), batch.mirrored):
                    digest.update(part.numpy().tobytes())
            log.write(f"{number} {digest.hexdigest()}\n")
            log.flush()
            os.fsync(log.fileno())
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
