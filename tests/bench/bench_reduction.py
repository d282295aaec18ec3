"""`make bench-reduction`: what the exact sum of gradients costs a step, beside DDP's all-reduce.

Ranks are processes of this machine, of one thread each, over gloo. Each trains three copies of a
network turn by turn: with the exact sum, with the fast one, and as a plain DDP loop does, with
DDP's own all-reduce of gradients and its broadcast of batch norm's statistics; all with clipping
and the same optimizer. The medians of the slowest rank's steps are told, and their ratios.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.loading.batch import MicroBatch
from inception.family import build_architecture
from inception.layers import normalize
from inception.loss import inception_loss
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import to_device_format
from inception.reduction import StepReduction
from inception.step import train_step
from inception.tree_sum import TreeSum
from orchestration.cli.tables import print_json

progress = Console(stderr=True, highlight=False)
Step = Callable[[list[MicroBatch]], None]
CLASSES, CLIP_NORM = 10, 4.0
LARGE = "inception_v3 at 139 px"  # 17 times the quickstart's weights
# Pixels, width, images of a micro-batch.
SHAPES = {"quickstart": (75, 0.25, 16), LARGE: (139, 1.0, 4)}
# Ranks and micro-batches. With three ranks none of theirs are joined before the exchange.
CASES = {"quickstart": ((2, 2), (4, 4), (2, 8), (4, 8), (3, 8)), LARGE: ((2, 2), (4, 4))}


def build(
    shape: str, *, broadcast_buffers: bool = False
) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    pixels, width, _ = SHAPES[shape]
    architecture = build_architecture(
        "inception_v3", num_classes=CLASSES, input_size=pixels, width=width
    )
    network = build_network(architecture).train()
    to_device_format(network, torch.device("cpu"))
    optimizer = build_optimizer(network, name="rmsprop_tf", lr=0.01, weight_decay=4e-5)
    with warnings.catch_warnings():  # as in orchestration.worker.train_state
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            network, broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True
        )
    return ddp, optimizer


def ours(shape: str, rank: int, tree: TreeSum, *, is_exact: bool) -> Step:
    model, optimizer = build(shape)
    reduction = StepReduction(model, tree, rank, is_exact=is_exact)

    def step(batches: list[MicroBatch]) -> None:
        train_step(model, optimizer, batches, reduction, seed=0, step=0, clip_norm=CLIP_NORM)

    return step


def plain(shape: str) -> Step:
    model, optimizer = build(shape, broadcast_buffers=True)

    def step(batches: list[MicroBatch]) -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with nullcontext() if batch is batches[-1] else model.no_sync():
                logits, aux_logits = model(normalize(batch.images))
                loss = inception_loss(logits, aux_logits, batch.targets, weights=batch.weights)
                (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def measure_rank(rank: int, case: tuple[int, int], rounds: int, shape: str, folder: str) -> None:
    """Rank 0 writes the seconds of each step."""
    world_size, num_micro_batches = case
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    tree = TreeSum.of(num_micro_batches, world_size)
    pixels, _, size = SHAPES[shape]
    batches = []
    for index in range(rank, num_micro_batches, world_size):
        images = torch.randint(0, 256, (size, pixels, pixels, 3), dtype=torch.uint8)
        batches.append(
            MicroBatch(
                index=index,
                images=images.permute(0, 3, 1, 2),
                targets=torch.randint(0, CLASSES, (size,)),
                weights=torch.ones(size),
                samples=torch.zeros(size, 2, dtype=torch.int64),
                mirrored=torch.zeros(size, dtype=torch.bool),
            )
        )
    steps = {
        "exact": ours(shape, rank, tree, is_exact=True),
        "fast": ours(shape, rank, tree, is_exact=False),
        "DDP": plain(shape),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):  # the first warm up; DDP rebuilds its buckets after one
        for name, step in steps.items():
            dist.barrier()
            began = time.perf_counter()
            step(batches)
            dist.barrier()
            if number >= 3:
                times[name].append(time.perf_counter() - began)
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(times))
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort an interpreter that shuts down normally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=40, help="timed steps of each; a third of the large network"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for shape in SHAPES:
        for case in CASES[shape]:
            rounds = options.rounds // 3 if shape == LARGE else options.rounds
            with tempfile.TemporaryDirectory() as folder:
                ranks = [
                    multiprocessing.get_context("spawn").Process(
                        target=measure_rank,
                        args=(rank, case, rounds, shape, folder),
                    )
                    for rank in range(case[0])
                ]
                for process in ranks:
                    process.start()
                for process in ranks:
                    process.join()
                times = json.loads(Path(folder, "times.json").read_text())
            medians = {name: statistics.median(taken) for name, taken in times.items()}
            ratios = [e / d for e, d in zip(times["exact"], times["DDP"], strict=True)]
            results.append(
                {"network": shape, "ranks": case[0], "micro_batches": case[1], "median_s": medians,
                 "exact_to_ddp": statistics.median(ratios)}
            )  # fmt: skip
            progress.print(f"{shape}, {case[0]} ranks: {results[-1]['exact_to_ddp']:.3f}")
    if options.json:
        print_json(results)
        return
    table = Table(
        "network", "ranks", "micro-batches", "exact ms", "fast ms", "DDP ms", "exact / DDP"
    )
    for result in results:
        milliseconds = [f"{1000 * value:.1f}" for value in result["median_s"].values()]
        table.add_row(
            result["network"],
            str(result["ranks"]),
            str(result["micro_batches"]),
            *milliseconds,
            f"{result['exact_to_ddp']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
