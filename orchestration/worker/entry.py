"""Ray Train's entry point on each rank. Separate from `train_loop`, so that the driver, which names
it, does not import torch."""

from datasets.storage.proxy import bypass_loopback
from orchestration.worker.worker_config import WorkerConfig


def train_loop(config: dict[str, WorkerConfig]) -> None:
    """Trains on one rank. Raises TrainingError, ModelError, DataError, StoreError."""
    from orchestration.worker.train_loop import TrainLoop

    bypass_loopback()  # a rank's environment is that of its node

    TrainLoop(config["config"]).train()
