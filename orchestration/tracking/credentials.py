"""What our own clients log in with at an MLflow server: the stack's token at the embedded one, at a
team's whatever the person has set."""

import os
from urllib.parse import urlsplit

from datasets.storage.proxy import is_loopback
from orchestration.errors import ServiceError
from orchestration.stack.state import Stack, load_stack, stack_folder

USER = "rayception"  # of the token; the embedded server does not look at it
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
OTHER_LOGINS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")


def find_embedded(uri: str) -> Stack | None:
    """This machine's stack, if `uri` is its MLflow server, which runs."""
    try:
        stack = load_stack(stack_folder())
    except ServiceError:  # it may be a team's server, for which the stack does not matter
        return None
    url = urlsplit(uri)
    if stack is None or url.scheme != "http" or not is_loopback(url.hostname or ""):
        return None
    return stack if url.port == stack.ports.get("mlflow") and stack.is_up("mlflow") else None


def set_credentials(uri: str) -> None:
    """Puts the stack's token into the environment, which MLflow reads at each request, if `uri` is
    its server. A dead server's is taken out: another user's process may have its port now.

    As a password: MLflow prefers a name and a password, also those of ~/.mlflow/credentials, to a
    token, and the environment to that file.
    """
    if (stack := find_embedded(uri)) is not None:
        # requests would put the login of a person's ~/.netrc in place of it.
        login = {USERNAME: USER, PASSWORD: stack.secrets.mlflow_token, "NETRC": os.devnull}
        os.environ |= login
        for name in OTHER_LOGINS:
            os.environ.pop(name, None)
    elif os.environ.get(USERNAME) == USER:
        del os.environ[USERNAME]
        os.environ.pop(PASSWORD, None)
