"""What a node says that it is busy with."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from orchestration.worker import system_metrics as system_metrics

GIB = 2**30


def test_a_node_without_a_gpu_says_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real numbers of this machine, twice, a moment apart."""
    monkeypatch.setattr(system_metrics, "EVERY_S", 0.2)
    told: list[dict[str, float]] = []
    enough = threading.Event()

    def report(values: dict[str, float]) -> None:
        told.append(values)
        if len(told) == 2:
            enough.set()

    before = set(threading.enumerate())
    done = system_metrics.start_sampling(report)
    [thread] = set(threading.enumerate()) - before
    assert enough.wait(20)
    done.set()
    for values in told[:2]:
        assert 0 <= values["cpu_utilization_percentage"] <= 100
        assert 0 < values["system_memory_usage_percentage"] <= 100
        assert values["network_receive_mb_per_second"] >= 0
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's answers on a node whose first GPU is lost and whose third is cut in slices,
    which know no utilization. (The library is the real one; there is no GPU to ask.)"""

    def no_slice(answer: Any) -> Any:
        def ask(gpu: int) -> Any:
            if gpu == 2:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer

        return ask

    def handle(number: int) -> int:
        if number == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return number

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetUtilizationRates": no_slice(SimpleNamespace(gpu=97, memory=40)),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=20 * GIB, total=80 * GIB),
        "nvmlDeviceGetPowerUsage": no_slice(650_500),
    }
    for name, answer in answers.items():
        assert hasattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, answer)


def test_a_gpu_that_does_not_say_all_silences_nothing(three_gpus: None) -> None:
    moment = (time.monotonic(), {"network_receive": 0, "network_transmit": 0})
    found = system_metrics.read(moment, moment)
    assert {name: value for name, value in found.items() if name.startswith("gpu_")} == {
        "gpu_1_utilization_percentage": 97.0,
        "gpu_1_memory_usage_percentage": 25.0,
        "gpu_1_power_usage_watts": 650.5,
        "gpu_2_memory_usage_percentage": 25.0,
    }
    assert "cpu_utilization_percentage" in found
