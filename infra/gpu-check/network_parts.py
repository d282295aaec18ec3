"""Parts that measure the network and its step. Each function is a part and returns its result."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from measure import (
    CPU,
    DEVICE,
    HAS_CUDA,
    NUM_CLASSES,
    Training,
    median_step_s,
    peak_gib,
    process_group,
    random_micro_batches,
    reset_peak_memory,
    synchronize,
)
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from datasets.loading.device import to_device
from inception.rank_check import checksum


def environment(tiny: bool) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    if not HAS_CUDA:
        return versions
    properties = torch.cuda.get_device_properties(0)
    return versions | {
        "card": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "sms": properties.multi_processor_count,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "cudnn": torch.backends.cudnn.version(),
    }


def numerics(tiny: bool) -> dict[str, Any]:
    """One float32 step on the device against the CPU; bf16 against float32 over some steps."""
    pixels, size = (75, 4) if tiny else (139, 16)
    torch.manual_seed(0)
    batches = random_micro_batches(2, size, pixels, CPU)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {}
    with process_group():
        training = Training(pixels, width=0.5, precision="fp32")
        loss = float(training.step([to_device(batch, DEVICE) for batch in batches]).loss)
        weights = {n: t.float().cpu() for n, t in training.network.state_dict().items()}
    if HAS_CUDA:
        with process_group(CPU):
            on_cpu = Training(pixels, width=0.5, precision="fp32", device=CPU)
            result["loss_cpu_minus_gpu"] = abs(float(on_cpu.step(batches).loss) - loss)
        result["weights_max_difference"] = max(
            float((tensor.float() - weights[name]).abs().max())
            for name, tensor in on_cpu.network.state_dict().items()
        )
    result["losses_of_one_batch"] = {}
    for precision in ("fp32", "bf16") if HAS_CUDA else ("fp32",):
        with process_group():
            torch.manual_seed(1)
            training = Training(pixels, width=0.5, precision=precision)
            batches = random_micro_batches(2, size, pixels)
            losses = [float(training.step(batches).loss) for _ in range(4 if tiny else 50)]
        shown = (losses[0], losses[len(losses) // 2], losses[-1])
        result["losses_of_one_batch"][precision] = [round(value, 4) for value in shown]
    return result


def torchvisions(tiny: bool) -> dict[str, Any]:
    """torchvision's model with torch.optim.RMSprop and bf16 autocast, for comparison."""
    try:
        from torchvision.models.inception import Inception3
    except (ImportError, RuntimeError) as error:  # missing, or compiled for another torch
        return {"skipped": str(error)}

    def measure(layout: torch.memory_format) -> dict[str, Any]:
        pixels, size = (299, 2) if tiny else (299, 256)
        model = Inception3(num_classes=NUM_CLASSES, init_weights=False, transform_input=False)
        model = model.to(DEVICE).to(memory_format=layout).train()
        optimizer = torch.optim.RMSprop(
            model.parameters(), lr=0.045, alpha=0.9, eps=1.0, momentum=0.9
        )
        images = torch.rand(size, 3, pixels, pixels, device=DEVICE).mul_(2).sub_(1)
        images = images.contiguous(memory_format=layout)
        targets = torch.randint(0, NUM_CLASSES, (size,), device=DEVICE)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HAS_CUDA):
                logits, aux_logits = model(images)
                loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
                loss = loss + 0.4 * F.cross_entropy(aux_logits, targets, label_smoothing=0.1)
            loss.backward()
            optimizer.step()

        reset_peak_memory()
        seconds = median_step_s(step, warmup=1 if tiny else 5, steps=1 if tiny else 10)
        return {"images_per_second": round(size / seconds, 1), "peak_gib": peak_gib()}

    return {
        "nchw": measure(torch.contiguous_format),
        "channels_last": measure(torch.channels_last),
    }


def ours(tiny: bool) -> dict[str, Any]:
    """Keys: micro-batches x their size. 8x32: the paper's 32 per replica, on one GPU."""
    return _measure_shapes(tiny, [(8, 32), (4, 64), (2, 128), (1, 256), (1, 512), (1, 32)])


def compiled(tiny: bool) -> dict[str, Any]:
    compile_mode = None if tiny else "default"
    return _measure_shapes(tiny, [(1, 256), (1, 128)], compile_mode)


def groups(tiny: bool) -> dict[str, Any]:
    """One pass whose batch norm takes 32 rows together: the paper's statistics."""
    return _measure_shapes(tiny, [(1, 256)], group_size=2 if tiny else 32)


def same_bits(tiny: bool) -> dict[str, Any]:
    """By kind of kernels: whether two processes, and a restarted one, compute the same bits."""
    result: dict[str, Any] = {}
    for kind in ("deterministic",) if tiny else ("deterministic", "fastest"):
        runs = []
        for part in ("trained", "trained", "restarted"):
            arguments = [part, "--kernels", kind] + ["--tiny"] * tiny
            done = subprocess.run(
                [sys.executable, str(Path(__file__).parent / "check.py"), *arguments],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            runs.append(json.loads(done.stdout.splitlines()[-1])[part])
        result[kind] = {
            "two_are_equal": runs[0]["checksum"] == runs[1]["checksum"],
            "restarted_is_equal": runs[0]["checksum"] == runs[2]["checksum"],
            "images_per_second": runs[1]["images_per_second"],
        }
    return result


def trained(tiny: bool, *, restarts: bool = False) -> dict[str, Any]:
    """A checksum of the weights after some steps. 10 classes: gradients that are not aligned."""
    pixels, width, count, size, steps = (75, 0.1, 2, 2, 2) if tiny else (299, 1.0, 2, 64, 4)
    torch.manual_seed(0)
    batches = random_micro_batches(count, size, pixels, num_classes=10)
    with process_group():
        training = Training(pixels, width=width, num_classes=10)
        for number in range(2 * steps):
            if restarts and number == steps:
                training.wrap()  # DDP's first step has other buckets than those that follow
            training.step(batches)
        checksum_ = checksum(training.network.state_dict().values())
        seconds = median_step_s(lambda: training.step(batches), warmup=0, steps=1 if tiny else 4)
    return {"checksum": checksum_, "images_per_second": round(count * size / seconds, 1)}


def restarted(tiny: bool) -> dict[str, Any]:
    return trained(tiny, restarts=True)


def _measure_shapes(
    tiny: bool,
    shapes: list[tuple[int, int]],
    compile_mode: str | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with process_group():
        for count, size in [(2, 4)] if tiny else shapes:
            try:
                measured = _measure_shape(tiny, count, size, compile_mode, group_size)
            except Exception as error:  # other shapes may still fit
                measured = f"{type(error).__name__}: {str(error)[:200]}"
            result[f"{count}x{size}"] = measured
            if HAS_CUDA:
                torch.cuda.empty_cache()
    return result


def _measure_shape(
    tiny: bool, count: int, size: int, compile_mode: str | None, group_size: int | None
) -> dict[str, Any]:
    pixels = 75 if tiny else 299
    reset_peak_memory()
    training = Training(pixels, compile_mode=compile_mode, group_size=group_size)
    batches = random_micro_batches(count, size, pixels)
    start = time.perf_counter()
    training.step(batches)
    synchronize()
    first_step_s = time.perf_counter() - start
    seconds = median_step_s(
        lambda: training.step(batches), warmup=1 if tiny else 3, steps=1 if tiny else 8
    )
    return {
        "images_per_second": round(count * size / seconds, 1),
        "first_step_s": round(first_step_s, 1),
        "peak_gib": peak_gib(),
    }


def kernels(tiny: bool) -> dict[str, Any]:
    """The share of time that the device is busy, kernel launches, and the longest kernels."""
    pixels, count, size, steps = (75, 2, 2, 1) if tiny else (299, 8, 32, 3)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if HAS_CUDA else [])
    with process_group():
        training, batches = Training(pixels), random_micro_batches(count, size, pixels)
        for _ in range(steps):
            training.step(batches)
        synchronize()
        start = time.perf_counter()
        with profile(activities=activities) as profiler:
            for _ in range(steps):
                training.step(batches)
            synchronize()
        wall_s = time.perf_counter() - start
    attribute = "self_device_time_total" if HAS_CUDA else "self_cpu_time_total"
    rows = [(row, getattr(row, attribute)) for row in profiler.key_averages()]
    device_us = sum(time_us for _, time_us in rows) if HAS_CUDA else 0
    longest = sorted(rows, key=lambda row: -row[1])[:15]
    return {
        "device_busy_share_while_profiled": round(device_us / 1e6 / wall_s, 3),
        "launches": sum(row.count for row, _ in rows if "Launch" in row.key),
        "top": [[row.key[:70], row.count, round(time_us / 1e3, 2)] for row, time_us in longest],
    }


def syncs(tiny: bool) -> dict[str, Any]:
    """How often five steps wait for the device; 0 is the aim."""
    if not HAS_CUDA:
        return {"skipped": "no GPU"}
    with process_group():
        training, batches = Training(299), random_micro_batches(2, 32, 299)
        training.step(batches)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(5):
                training.step(batches)
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught)
    return {"waits_in_5_steps": places.total(), "where": places}
