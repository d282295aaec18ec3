"""The final network's predictions on the validation split: a file beside the checkpoints."""

import io
import pickle

import torch

from datasets.errors import DataError
from datasets.storage.checksums import seal, unseal
from datasets.storage.store import Store
from inception.predictions import Predictions
from orchestration.errors import TrainingError
from orchestration.run.checkpoint import encode_tensors

PREDICTIONS_FILE = "predictions.pt"


def save_predictions(store: Store, run_url: str, predictions: Predictions) -> None:
    """Raises StoreError."""
    store.write(f"{run_url}/{PREDICTIONS_FILE}", seal(encode_tensors(predictions)))


def load_predictions(store: Store, run_url: str) -> Predictions | None:
    """None if the run has none. Raises TrainingError if the file is damaged, StoreError."""
    try:
        content = store.read(f"{run_url}/{PREDICTIONS_FILE}")
    except DataError:
        return None
    try:
        encoded = unseal(content, or_plain=True)
        values = torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)
        return Predictions(**values)
    except (ValueError, pickle.UnpicklingError, RuntimeError, TypeError) as error:
        raise TrainingError(
            f"{run_url}/{PREDICTIONS_FILE}: got something other than the predictions that were "
            f"written ({type(error).__name__}); the file is damaged. Delete it, and `rayception "
            "evaluate` the run."
        ) from error
