"""Rules about one value of a job; each raises JobError by the error law."""

import re
from collections.abc import Sequence

from inception.errors import unknown_name
from orchestration.errors import JobError


def choose(path: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise JobError(str(unknown_name(path, value, known)))


def at_least(path: str, value: int, least: int) -> None:
    if value < least:
        raise JobError(f"{path}: got {value}; at least {least}. Write {least} or more.")


def above(path: str, value: float, bound: float) -> None:
    if not value > bound:
        raise JobError(f"{path}: got {value}; more than {bound:g}. Write a larger number.")


def within(path: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise JobError(
            f"{path}: got {value}; from {low:g} to {high:g}. Write a number in that range."
        )


def without_secrets(url: str) -> str:
    """The URL less anything before an @ and its query: a mistyped password or a signature must not
    come back in an error."""
    return re.sub(r"//[^/]*@", "//***@", url).partition("?")[0]
