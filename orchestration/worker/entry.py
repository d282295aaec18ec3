"""Ray Train's entry point on each rank. Separate from `train_loop`, so that the driver, which names
it, does not import torch."""

from orchestration.worker.worker_config import WorkerConfig


def train_loop(config: dict[str, WorkerConfig]) -> None:
    """Trains on one rank. Raises TrainingError, ModelError, DataError, StoreError."""
    from orchestration.worker.train_loop import TrainLoop

    TrainLoop(config["config"]).train()
