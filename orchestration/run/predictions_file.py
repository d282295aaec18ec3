"""What a run's network said of each held-out image at its end: a file beside its checkpoints."""

import io
import pickle

import torch

from datasets.errors import DataError
from datasets.storage.store import Store
from inception.predictions import Predictions
from orchestration.errors import TrainingError

PREDICTIONS_FILE = "predictions.pt"
FIELDS = ("samples", "targets", "best", "best_p", "target_p")


def save_predictions(store: Store, run_url: str, predictions: Predictions) -> None:
    """Raises StoreError where the storage refuses."""
    values = {name: getattr(predictions, name) for name in FIELDS} | {"keys": predictions.keys}
    buffer = io.BytesIO()
    torch.save(values, buffer)
    store.write(f"{run_url}/{PREDICTIONS_FILE}", buffer.getvalue())


def load_predictions(store: Store, run_url: str) -> Predictions | None:
    """None for a run that has none. Raises TrainingError where they are damaged, StoreError."""
    try:
        content = store.read(f"{run_url}/{PREDICTIONS_FILE}")
    except DataError:
        return None
    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return Predictions(**values)
    except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
        raise TrainingError(
            f"{run_url}/{PREDICTIONS_FILE}: got something else than predictions "
            f"({type(error).__name__}). Delete it, and `rayception evaluate` the run."
        ) from error
