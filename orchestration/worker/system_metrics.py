"""CPU, memory, network, disk and GPU use of a node, sampled beside training by one of its ranks."""

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

EVERY_S = 10.0
GIB = 2**30
Counters = tuple[float, dict[str, int]]  # time in seconds, bytes so far by name


def start_sampling(report: Callable[[dict[str, float]], object]) -> threading.Event:
    """Calls `report` every ten seconds in a thread; -> the event that ends it."""
    done = threading.Event()

    def sample() -> None:
        before = _counters()
        psutil.cpu_percent()  # the first call only starts the measurement
        while not done.wait(EVERY_S):
            after = _counters()
            report(read_system_metrics(before, after))
            before = after

    threading.Thread(target=sample, name="system-metrics", daemon=True).start()
    return done


def read_system_metrics(before: Counters, after: Counters) -> dict[str, float]:
    """By MLflow's names of system metrics: percent, GiB, MB/s, W."""
    memory, seconds = psutil.virtual_memory(), max(after[0] - before[0], 1e-9)
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_gib": memory.used / GIB,
        "system_memory_usage_percentage": memory.percent,
    }
    for name, num_bytes in after[1].items():
        rate = max(0, num_bytes - before[1][name]) / seconds / 1e6
        metrics[f"{name}_mb_per_second"] = rate
    return metrics | _gpu_metrics()


def _counters() -> Counters:
    network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
    num_bytes = {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}
    if disk is not None:
        num_bytes |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    return time.monotonic(), num_bytes


def _gpu_metrics() -> dict[str, float]:
    """Of every GPU of the node; empty without NVIDIA's driver or nvidia-ml-py. What a GPU does not
    support is left out: a MIG slice has no utilization, some cards no power, a lost GPU nothing."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return {}
    metrics: dict[str, float] = {}
    for number in range(count):
        try:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
        except pynvml.NVMLError:
            continue
        with contextlib.suppress(pynvml.NVMLError):
            percent = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            metrics[f"gpu_{number}_utilization_percentage"] = float(percent)
        with contextlib.suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            metrics[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with contextlib.suppress(pynvml.NVMLError):
            milliwatts = pynvml.nvmlDeviceGetPowerUsage(gpu)
            metrics[f"gpu_{number}_power_usage_watts"] = milliwatts / 1000
    return metrics
