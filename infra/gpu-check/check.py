"""One part of the GPU check, as JSON on the last line: `python check.py PART [--tiny]`, from the checkout's root.

Parts need torch, torchvision and what prepare.sh carries; neither ray nor mlflow. --tiny: small sizes on any
device, so that a CPU can prove that nothing is mistyped.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F

sys.path.insert(0, os.getcwd())
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
CLASSES = 1000


def sync():
    if CUDA:
        torch.cuda.synchronize()


def timed(step, *, warmup, steps):
    """Median seconds of a step; each is measured with the device idle at both ends of the block."""
    for _ in range(warmup):
        step()
    sync()
    blocks = []
    for _ in range(5 if CUDA else 1):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        sync()
        blocks.append((time.perf_counter() - began) / steps)
    return sorted(blocks)[len(blocks) // 2]


def peak_gib():
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if CUDA else None


def micro_batches(count, size, pixels, device):
    from datasets.loading.batch import MicroBatch

    made = []
    for index in range(count):
        images = torch.randint(0, 256, (size, pixels, pixels, 3), dtype=torch.uint8).permute(
            0, 3, 1, 2
        )
        made.append(
            MicroBatch(
                index=index,
                images=images.to(device),
                targets=torch.randint(0, CLASSES, (size,)).to(device),
                weights=torch.ones(size).to(device),
                samples=torch.zeros(size, 2, dtype=torch.int64),
                mirrored=torch.zeros(size, dtype=torch.bool),
            )
        )
    return made


class Ours:
    """The network, optimizer and step as a run uses them."""

    def __init__(self, pixels, *, width=1.0, precision="auto", device=DEVICE, compiled=None):
        from torch.nn.parallel import DistributedDataParallel

        from inception.family import build_architecture
        from inception.network import build_network
        from inception.optim import build_optimizer
        from inception.precision import autocast_for, to_device_format

        self.model = build_network(
            build_architecture("inception_v3", num_classes=CLASSES, input_size=pixels, width=width),
            seed=0,
        ).train()
        to_device_format(self.model, device)
        self.optimizer = build_optimizer(self.model, name="rmsprop_tf", lr=0.045, weight_decay=4e-5)
        self.autocast = autocast_for(device, precision)
        wrapped = self.model if compiled is None else torch.compile(self.model, mode=compiled)
        self.ddp = DistributedDataParallel(
            wrapped, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        self.number = 0

    def step(self, mine):
        from inception.step import train_step

        self.number += 1
        return train_step(
            self.ddp,
            self.optimizer,
            mine,
            num_micro_batches=len(mine),
            world_size=1,
            seed=0,
            step=self.number,
            clip_norm=2.0,
            autocast=self.autocast,
        )


def join_group():
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = dist.FileStore(tempfile.mktemp(), 1)
    if CUDA:
        torch.cuda.set_device(0)
    dist.init_process_group("nccl" if CUDA else "gloo", store=store, rank=0, world_size=1)


# The parts


def environment(tiny):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    if CUDA:
        p = torch.cuda.get_device_properties(0)
        found |= {
            "card": p.name,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "sms": p.multi_processor_count,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def numerics(tiny):
    """float32 on the device against the CPU after one step; bf16 against float32 over some steps."""
    join_group()
    pixels, size = (75, 4) if tiny else (139, 16)
    torch.manual_seed(0)
    batch = micro_batches(2, size, pixels, "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result = {}
    here = Ours(pixels, width=0.5, precision="fp32")
    moved = [
        type(b)(
            **{
                f: (
                    getattr(b, f).to(DEVICE)
                    if f in ("images", "targets", "weights")
                    else getattr(b, f)
                )
                for f in b.__dataclass_fields__
            }
        )
        for b in batch
    ]
    loss = float(here.step(moved).loss)
    state = {n: t.detach().float().cpu() for n, t in here.model.state_dict().items()}
    if CUDA:
        dist.destroy_process_group()
        dist.init_process_group(
            "gloo", store=dist.FileStore(tempfile.mktemp(), 1), rank=0, world_size=1
        )
        there = Ours(pixels, width=0.5, precision="fp32", device=torch.device("cpu"))
        result["loss_cpu_minus_gpu"] = abs(float(there.step(batch).loss) - loss)
        result["weights_max_difference"] = max(
            float((t.float() - state[n]).abs().max()) for n, t in there.model.state_dict().items()
        )
    losses = {}
    for precision in ("fp32", "bf16") if CUDA else ("fp32",):
        if CUDA:
            dist.destroy_process_group()
            join_group()
        torch.manual_seed(1)
        run = Ours(pixels, width=0.5, precision=precision)
        fixed = micro_batches(2, size, pixels, DEVICE)
        losses[precision] = [float(run.step(fixed).loss) for _ in range(4 if tiny else 50)]
    return result | {
        "losses_of_one_batch": {
            k: [round(v[0], 4), round(v[len(v) // 2], 4), round(v[-1], 4)]
            for k, v in losses.items()
        }
    }


def torchvisions(tiny):
    """torchvision's own model, torch.optim.RMSprop, AMP in bf16: what a user would run instead."""
    try:
        from torchvision.models.inception import Inception3
    except (ImportError, RuntimeError) as error:  # not there, or compiled for another torch
        return {"skipped": str(error)}
    pixels, size = (299, 2) if tiny else (299, 256)
    found = {}
    for name, layout in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model = Inception3(num_classes=CLASSES, init_weights=False, transform_input=False).to(
            DEVICE
        )
        model = model.to(memory_format=layout).train()
        optimizer = torch.optim.RMSprop(
            model.parameters(), lr=0.045, alpha=0.9, eps=1.0, momentum=0.9
        )
        images = (
            torch.rand(size, 3, pixels, pixels, device=DEVICE)
            .mul_(2)
            .sub_(1)
            .contiguous(memory_format=layout)
        )
        targets = torch.randint(0, CLASSES, (size,), device=DEVICE)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
                logits, side = model(images)
                loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
                loss = loss + 0.4 * F.cross_entropy(side, targets, label_smoothing=0.1)
            loss.backward()
            optimizer.step()

        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(step, warmup=1 if tiny else 5, steps=1 if tiny else 10)
        found[name] = {"images_per_second": round(size / seconds, 1), "peak_gib": peak_gib()}
        model = optimizer = None
    return found


def _ours(tiny, shapes, compiled=None):
    join_group()
    pixels = 75 if tiny else 299
    found = {}
    for count, size in [(2, 2)] if tiny else shapes:
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        try:
            run = Ours(pixels, compiled=compiled)
            mine = micro_batches(count, size, pixels, DEVICE)
            began = time.perf_counter()
            run.step(mine)
            sync()
            first = time.perf_counter() - began
            seconds = timed(lambda: run.step(mine), warmup=1 if tiny else 3, steps=1 if tiny else 8)
            found[f"{count}x{size}"] = {
                "images_per_second": round(count * size / seconds, 1),
                "first_step_s": round(first, 1),
                "peak_gib": peak_gib(),
            }
        except Exception as error:  # the others still count
            found[f"{count}x{size}"] = f"{type(error).__name__}: {str(error)[:200]}"
        run = mine = None
        if CUDA:
            torch.cuda.empty_cache()
    return found


def ours(tiny):
    """Micro-batches x their size; 8x32 is what a run of the paper's 32 a replica does on one GPU."""
    return _ours(tiny, [(8, 32), (4, 64), (2, 128), (1, 256), (1, 512), (1, 32)])


def compiled(tiny):
    return _ours(tiny, [(1, 256), (1, 128)], compiled=None if tiny else "default")


def kernels(tiny):
    """Where a step's time goes: share of the device's busy time, the longest kernels, launches a step."""
    from torch.profiler import ProfilerActivity, profile

    join_group()
    pixels = 75 if tiny else 299
    run, mine = (
        Ours(pixels),
        micro_batches(8 if not tiny else 2, 32 if not tiny else 2, pixels, DEVICE),
    )
    for _ in range(1 if tiny else 3):
        run.step(mine)
    sync()
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if CUDA else [])
    began = time.perf_counter()
    with profile(activities=kinds) as watched:
        for _ in range(1 if tiny else 3):
            run.step(mine)
        sync()
    wall = time.perf_counter() - began
    rows = watched.key_averages()
    device_us = sum(r.self_device_time_total for r in rows) if CUDA else 0
    top = sorted(
        rows, key=lambda r: -(r.self_device_time_total if CUDA else r.self_cpu_time_total)
    )[:15]
    return {
        "device_busy_share_while_profiled": round(device_us / 1e6 / wall, 3),
        "launches": sum(r.count for r in rows if "Launch" in r.key),
        "top": [
            [
                r.key[:70],
                r.count,
                round((r.self_device_time_total if CUDA else r.self_cpu_time_total) / 1e3, 2),
            ]
            for r in top
        ],
    }


def syncs(tiny):
    """How often a step waits for the device (0 is the aim)."""
    if not CUDA:
        return {"skipped": "no GPU"}
    import warnings

    join_group()
    run, mine = Ours(299), micro_batches(2, 32, 299, DEVICE)
    run.step(mine)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(5):
            run.step(mine)
    torch.cuda.set_sync_debug_mode("default")
    where = {}
    for one in seen:
        key = f"{Path(one.filename).name}:{one.lineno}"
        where[key] = where.get(key, 0) + 1
    return {"waits_in_5_steps": sum(where.values()), "where": where}


def data(tiny):
    """Images per second of the training loader, by threads and by processes, from file:// shards."""
    from datasets.images.augment import Augment
    from datasets.loading.loader import TrainLoader
    from datasets.order import Order
    from datasets.packing.pack import pack
    from datasets.storage.store import Store

    try:
        from tests.bench.images import make_images

        list(make_images(1))
    except ImportError as error:  # scikit-image is part of the benchmarks' requirements
        return {"skipped": str(error)}
    count, batch = (40, 8) if tiny else (1280, 256)
    samples = (
        {"__key__": f"{i:06d}", "jpg": content, "cls": str(i % 4).encode()}
        for i, content in enumerate(make_images(count))
    )
    url = Path(tempfile.mkdtemp()).as_uri()
    split = pack(
        samples, Store(), url, classes=[str(i) for i in range(4)], samples_per_shard=count // 4
    )
    cores = os.cpu_count() or 1
    settings = [("threads", n) for n in (1, 2, 4, 8, 16) if n <= cores]
    settings += [("workers", n) for n in (2, 4, 8, 15) if n < cores]
    found = {}
    for kind, number in settings[:2] if tiny else settings:
        order = Order(
            seed=0, samples_per_shard=split.samples_per_shard, num_lanes=4 if tiny else 16, pieces=2
        )
        with TrainLoader(
            Store(),
            split,
            order,
            rank=0,
            world_size=1,
            global_batch_size=batch,
            micro_batch_size=batch,
            input_size=299,
            augment=Augment(),
            **{kind: number},
        ) as loader:
            batches = iter(loader)
            for _ in range(2):
                next(batches)
            began, seen = time.perf_counter(), 0
            while time.perf_counter() - began < (1 if tiny else 6):
                seen += sum(len(b.targets) for b in next(batches))
            found[f"{number} {kind}"] = round(seen / (time.perf_counter() - began), 1)
    return found


def copies(tiny):
    """Batches reach the device intact while pinned rows are made and dropped as fast as can be."""
    from datasets.loading.batch import empty_buffer
    from datasets.loading.device import on_device

    bad, sums = 0, []
    for number in range(4 if tiny else 300):
        rows = empty_buffer(32, 64 if tiny else 299)
        rows.images.fill_(number % 251)
        for batch in rows.micro_batches([0], 32):
            moved = on_device(batch, DEVICE)
            sums.append((number % 251, moved.images.to(torch.float32).mean()))
    for wanted, got in sums:
        bad += float(got) != float(wanted)
    return {"batches": len(sums), "wrong": int(bad)}


PARTS = {
    f.__name__: f
    for f in (environment, numerics, torchvisions, ours, compiled, kernels, syncs, copies, data)
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    began = time.perf_counter()
    answer = PARTS[options.part](options.tiny)
    if dist.is_initialized():
        dist.destroy_process_group()
    print(json.dumps({options.part: answer, "seconds": round(time.perf_counter() - began, 1)}))
