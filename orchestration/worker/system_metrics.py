"""What a node is busy with: its processors, memory, network, disk and GPUs. One rank a node reads
them, in a thread, beside training."""

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

EVERY_S = 10.0
GIB = 2**30
Counters = tuple[float, dict[str, int]]  # when (seconds), and bytes so far


def start_sampling(report: Callable[[dict[str, float]], object]) -> threading.Event:
    """Calls `tell` every ten seconds from a thread, until the event that it returns is set."""
    done = threading.Event()

    def look() -> None:
        before = _counters()
        psutil.cpu_percent()  # its first answer means nothing
        while not done.wait(EVERY_S):
            after = _counters()
            report(read(before, after))
            before = after

    threading.Thread(target=look, name="gauges", daemon=True).start()
    return done


def read(before: Counters, after: Counters) -> dict[str, float]:
    """By MLflow's own names of system metrics: percent, GiB, MB a second."""
    memory, seconds = psutil.virtual_memory(), max(after[0] - before[0], 1e-9)
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_gib": memory.used / GIB,
        "system_memory_usage_percentage": memory.percent,
    }
    for name, count in after[1].items():
        found[f"{name}_mb_per_second"] = max(0, count - before[1][name]) / seconds / 1e6
    return found | _gpus()


def _counters() -> Counters:
    network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
    found = {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}
    if disk is not None:
        found |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    return time.monotonic(), found


def _gpus() -> dict[str, float]:
    """Of every GPU of the node; nothing where there is no NVIDIA driver, or where the node was made
    without nvidia-ml-py. What a GPU does not say is left out: a slice of one (MIG) knows no
    utilization, some cards no power, one that is lost nothing."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return {}
    found: dict[str, float] = {}
    for number in range(count):
        try:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
        except pynvml.NVMLError:
            continue
        with contextlib.suppress(pynvml.NVMLError):
            busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            found[f"gpu_{number}_utilization_percentage"] = float(busy)
        with contextlib.suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            found[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with contextlib.suppress(pynvml.NVMLError):
            milliwatts = pynvml.nvmlDeviceGetPowerUsage(gpu)
            found[f"gpu_{number}_power_usage_watts"] = milliwatts / 1000
    return found
