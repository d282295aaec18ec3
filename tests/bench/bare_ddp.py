"""A bare torch DDP loop over a job's own batches: what `make bench-overhead` compares a run with.

No Ray, no MLflow, no checkpoint, no weight average, nothing logged: two processes, gloo, and the
textbook's loop. Model, batches, loss and optimizer are the job's.
"""

import argparse
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.loading.device import to_device
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from inception.layers import normalize
from inception.loss import inception_loss
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import to_device_format
from orchestration.cli.tables import print_json
from orchestration.job.load import load_job
from orchestration.job.plan import make_plan
from orchestration.worker.loaders import Loaders


def work(rank: int, port: int, path: str, overrides: list[str], warmup: int, result: str) -> None:
    """One rank; rank 0 writes images/s after the first `warmup` steps."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    job = load_job(path, overrides)
    store = Store()
    train, val = load_manifest(store, job.data.train), load_manifest(store, job.data.val)
    plan = make_plan(job, train_samples=train.num_samples, val_samples=val.num_samples)
    torch.set_num_threads(job.cluster.cpus_per_worker)
    dist.init_process_group("gloo", rank=rank, world_size=plan.world_size)
    device = torch.device("cpu")
    network = build_network(job.model.architecture(), seed=job.seed)
    to_device_format(network, device)
    model = DistributedDataParallel(network)
    optim = job.optim
    optimizer = build_optimizer(
        network, name=optim.name, lr=optim.lr, weight_decay=optim.weight_decay,
        momentum=optim.momentum, decay=optim.decay, eps=optim.eps,
    )  # fmt: skip
    feed = Loaders(
        job=job, plan=plan, store=store, rank=rank, world_size=plan.world_size, decoder=None
    )
    began = 0.0
    with feed.train_loader(train, step=0) as loader:
        for step, mine in enumerate(loader):
            if step == warmup:
                dist.barrier()
                began = time.perf_counter()
            if step == plan.total_steps:
                break
            optimizer.zero_grad()
            for i, batch in enumerate(mine):
                model.require_backward_grad_sync = i == len(mine) - 1
                moved = to_device(batch, device)
                logits, side = model(normalize(moved.images))
                loss = inception_loss(logits, side, moved.targets, weights=moved.weights)
                (loss / len(mine)).backward()  # type: ignore[no-untyped-call]
            if optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
            optimizer.step()
        dist.barrier()
    seconds = time.perf_counter() - began
    if rank == 0:
        rate = (plan.total_steps - warmup) * plan.global_batch_size / seconds
        Path(result).write_text(f"{rate}")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive an interpreter's end


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--result", required=True)
    given = parser.parse_args()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    ranks = load_job(given.job, given.overrides).cluster.accelerator.count
    mp.spawn(  # type: ignore[attr-defined,no-untyped-call]
        work,
        args=(port, given.job, given.overrides, given.warmup, given.result),
        nprocs=ranks,
    )
    print_json({"images_per_second": float(Path(given.result).read_text())})


if __name__ == "__main__":
    main()
