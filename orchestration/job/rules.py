"""Checks of single values of a job. Each raises JobError; None, a field left out, passes."""

import re
from collections.abc import Sequence

from inception.errors import unknown_name
from orchestration.errors import JobError

# An object or a prefix; in a URL, neither credentials nor a query.
OBJECT_URL = r"(s3://[^/]+/.+|file:///.+|https?://[^/@?]+/[^?]+)"


def check_choice(path: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise JobError(str(unknown_name(path, value, choices)))


def check_min(path: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise JobError(f"{path}: got {value}; at least {minimum}. Write {minimum} or more.")


def check_above(path: str, value: float | None, bound: float) -> None:
    if value is not None and not value > bound:
        raise JobError(f"{path}: got {value}; more than {bound:g}. Write a larger number.")


def check_range(path: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise JobError(
            f"{path}: got {value}; from {low:g} to {high:g}. Write a number in that range."
        )


def redact_url(url: str) -> str:
    """The URL without credentials and query: an error must not repeat a password or signature."""
    return re.sub(r"//[^/]*@", "//***@", url).partition("?")[0]
