"""What our own clients log in with at an MLflow server: at a team's, the person's name and password
or token, from the environment; at the embedded one, the stack's token."""

import os

from orchestration.errors import ServiceError
from orchestration.stack.state import load_stack, stack_folder


def set_credentials(uri: str) -> None:
    """Puts this machine's stack's token into the environment, if `uri` is its MLflow server. MLflow
    reads it at each request; a name and a password would go before it."""
    try:
        stack = load_stack(stack_folder())
    except ServiceError:  # it is nobody's business here: `uri` may be a team's server
        return
    if stack is None or "mlflow" not in stack.ports or stack.url("mlflow") != uri.rstrip("/"):
        return
    os.environ["MLFLOW_TRACKING_TOKEN"] = stack.secrets.mlflow_token
    os.environ.pop("MLFLOW_TRACKING_USERNAME", None)
    os.environ.pop("MLFLOW_TRACKING_PASSWORD", None)
