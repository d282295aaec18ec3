"""What a failed call to MLflow means to a person: each with the remedy of its own cause."""

import os
import re

from mlflow.exceptions import MlflowException

from datasets.storage.proxy import through_proxy

PAGE = re.compile(r"<!doctype html|<html", re.IGNORECASE)
BUSY = (502, 503, 504)
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
FULL = ("No space left", "database or disk is full", "quota")
DELETED_RUN = re.compile(r"[Rr]un '?(\w+)'? must be in (?:the )?'active'")
MISSING_RUN = re.compile(r"Run with id=(\w+) not found|Run '(\w+)' not found")


def describe_error(uri: str, error: Exception) -> str:
    """The error message of a failed call: what the server answered and what to do. It contains no
    credentials from the environment."""
    text = str(error).strip()
    first_line = text.splitlines()[0][:200] if text else ""
    proxy = through_proxy(uri)
    server = f"tracking.uri: got {uri}; the MLflow server"
    status = status_of_answer(error)
    if status == 401 and "MLFLOW_TRACKING_USERNAME" not in os.environ:
        return (
            f"{server} requires a login (401) and no user is named. Set {LOGIN}, or "
            "MLFLOW_TRACKING_TOKEN, in the environment."
        )
    if status == 401:
        return (
            f"{server} does not know the user, or the password is wrong (401). Correct "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    if status == 407 or "ProxyError" in text:
        return (
            f"{server} was not reached{proxy} ({type(error).__name__}: {first_line}). Check the "
            "proxy, or add the server's host to NO_PROXY."
        )
    if status == 403 and "Invalid Host header" in text:
        return (
            f"{server} does not answer under this name (403). Start it with --allowed-hosts that "
            "include this name, or use a name that it allows."
        )
    if status == 429:
        return (
            f"{server} answers that it is asked too often (429). Try again later, or log less "
            "often: a larger tracking.log_every_steps."
        )
    if status in BUSY:
        return (
            f"{server} is overloaded or restarts ({status}). Try again later, or look at its log."
        )
    if status == 500:  # MLflow's client tries it again, and loses the reason
        return f"{server} failed (500). Look at its log, its database and its disk's free space."
    if status == 413:
        return (
            f"{server}, or a proxy before it, accepts no request of this size (413). Raise its "
            "limit (nginx: client_max_body_size)."
        )
    if PAGE.search(text):
        return (
            f"{server} answered with a web page{proxy}, not as MLflow's API does"
            f"{'' if status is None else f' ({status})'}: a login page, or another server's. "
            "Correct the URL, with the path that MLflow is served under, or log in there first."
        )
    if status == 403:
        return (
            f"{server} does not let this user do that (403: {first_line}). Ask for the permission, "
            f"or set {LOGIN} to another user's."
        )
    if found := DELETED_RUN.search(text):
        return (
            f"{server} has deleted run {found[1]}. Restore it with `mlflow runs restore --run-id "
            f"{found[1]}`, or start a new run."
        )
    if found := MISSING_RUN.search(text):
        return (
            f"{server} has no run {found[1] or found[2]}: it is deleted for good, or the run "
            "belongs to another server. Name that server (tracking.uri), or start a new run."
        )
    if status == 507 or any(words in text for words in FULL):
        return f"{server} has no space left ({first_line}). Free some, or raise its quota."
    if status in (404, 405) and "RESOURCE_DOES_NOT_EXIST" not in text:
        return (
            f"{server} has no such call ({status}: {first_line}). Update it to MLflow 3.1 or "
            "later, or add the path that it is served under to the URL."
        )
    if "SSLError" in text or "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"{server} has a certificate of an authority that this machine does not know. Set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH to the file of yours."
        )
    if proxy:
        return (
            f"{server} refused or did not answer{proxy} ({type(error).__name__}: {first_line}). "
            "Check the proxy, or add the server's host to NO_PROXY."
        )
    return (
        f"{server} refused or did not answer ({type(error).__name__}: {first_line}). Check that it "
        "runs and that this machine reaches it."
    )


def describe_deleted_experiment(uri: str, name: str, experiment_id: str) -> str:
    """The error message of an experiment that somebody has deleted in MLflow's UI."""
    return (
        f"tracking.experiment: got {name}, which is deleted in the MLflow at {uri}; runs go to "
        f"experiments that are not. Restore it with `MLFLOW_TRACKING_URI={uri} mlflow experiments "
        f"restore --experiment-id {experiment_id}`, or name another tracking.experiment."
    )


def denied_status(error: Exception) -> int | None:
    """401 or 403 if the server denied access; a denied artifact raises an HTTP error instead."""
    status = status_of_answer(error)
    return status if status in (401, 403) else None


def status_of_answer(error: Exception) -> int | None:
    """The HTTP status of the server's answer; None without an answer."""
    if not isinstance(error, MlflowException):
        status = getattr(getattr(error, "response", None), "status_code", None)
        return status if isinstance(status, int) else None
    # MLflow keeps no status of answers that are not its own API's; its message begins with it.
    found = re.search(r"failed with error code (\d{3})|too many (\d{3}) error", str(error))
    if found:
        return int(found[1] or found[2])
    if error.error_code == "INTERNAL_ERROR":  # also of a request without an answer
        return None
    return int(error.get_http_status_code())
