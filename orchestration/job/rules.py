"""Checks of single values of a job. Each raises JobError."""

import re
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from typing import Any

from inception.errors import unknown_name
from orchestration.errors import JobError

# An object or a prefix; in a URL, neither credentials nor a query.
OBJECT_URL = r"(s3://[^/@]+/.+|file:///.+|https?://[^/@?]+/[^?]+)"
# user:password@, and the user@ of a web server, which may be a token; git@ of SSH is neither.
URL_CREDENTIALS = re.compile(r"://[^/\s@]*:[^/\s@]*@|https?://[^/\s@]+@", re.I)


def check_fields(section: Any, path: str) -> None:
    """Checks the fields of a section by their metadata: `choices`, `min`, `above` (excluded) or
    `range` (both included). None, a field left out, passes."""
    for field in fields(section):
        name, value = f"{path}.{field.name}", getattr(section, field.name)
        if value is None:
            continue
        if not all(isfinite(number) for number in _floats(value)):
            raise JobError(f"{name}: got {value}; finite numbers only. Write one.")
        match field.metadata:
            case {"choices": choices}:
                check_choice(name, value, choices)
            case {"min": minimum}:
                check_min(name, value, minimum)
            case {"above": bound} if not value > bound:
                raise JobError(f"{name}: got {value}; more than {bound:g}. Write a larger number.")
            case {"range": (low, high)} if not low <= value <= high:
                raise JobError(
                    f"{name}: got {value}; from {low:g} to {high:g}. Write a number in that range."
                )


def _floats(value: Any) -> list[float]:
    """The value, if it is a float, or those in it."""
    values = value.values() if isinstance(value, dict) else value
    parts = values if isinstance(value, dict | list | tuple) else [value]
    return [part for part in parts if isinstance(part, float)]


def check_choice(path: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise JobError(str(unknown_name(path, value, choices)))


def check_min(path: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise JobError(f"{path}: got {value}; at least {minimum}. Write {minimum} or more.")


def redact_url(url: str) -> str:
    """The URL without credentials and query: an error must not repeat a password or signature."""
    return re.sub(r"//[^/]*@", "//***@", url).partition("?")[0]
