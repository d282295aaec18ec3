"""The trained model in MLflow."""

from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

from orchestration.errors import ServiceError
from orchestration.tracking.runs import RunRef, refusal

if TYPE_CHECKING:
    from torch import Tensor, nn


def log_model(run: RunRef, model: "nn.Module", example: "Tensor") -> str:
    """The model in torch.export's format with signature and input example; -> its models:/ URI.

    example: float32 (N, 3, H, W) with N >= 2, the network's own input (-1..1). No pickle is
    written, and loading needs no rayception checkout. Raises ServiceError.
    """
    import torch
    from mlflow.models import infer_signature

    model.eval()
    with torch.inference_mode():
        logits = model(example).numpy()
    inputs = example.numpy()
    mlflow.set_tracking_uri(run.uri)
    try:
        with mlflow.start_run(run_id=run.run_id):
            info = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=infer_signature(inputs, logits),
                input_example=inputs,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            )
    except (MlflowException, OSError) as error:
        raise ServiceError(refusal(run.uri, error)) from error
    return str(info.model_uri)
