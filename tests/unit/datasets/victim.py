"""A training loader that is killed: writes a line for every finished step, from where the lines
end. Run as a process of its own by test_loader_kills.py.
"""

import hashlib
import os
import signal
from pathlib import Path

from datasets.images.augment import Augment
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store

BATCH, MICRO = 48, 8


def lines_of(text: str) -> list[str]:
    """The finished steps: whole lines alone count."""
    return text.split("\n")[:-1]


def began_file(file: Path) -> Path:
    """What there is from where a victim begins to read its data."""
    return file.with_suffix(".began")


def work(
    file: Path, url: str, last: int, world_size: int, threads: int, pause_at: int | None
) -> None:
    """pause_at: before this step it waits for its killer, who may be late."""
    manifest = load_manifest(Store(), url)
    order = Order(
        seed=2, samples_per_shard=manifest.samples_per_shard, num_lanes=6, pieces=3, slices=4
    )
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
    began_file(file).touch()
    with file.open("a") as log:
        for number, of_ranks in zip(range(step, last), zip(*loaders, strict=True), strict=False):
            if number == pause_at:
                signal.pause()
            batches = sorted((b for batches in of_ranks for b in batches), key=lambda b: b.index)
            digest = hashlib.sha256()
            for batch in batches:
                for part in (batch.samples, batch.images.contiguous(), batch.mirrored):
                    digest.update(part.numpy().tobytes())
            log.write(f"{number} {digest.hexdigest()}\n")
            log.flush()
            os.fsync(log.fileno())
    os._exit(0)
