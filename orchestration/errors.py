"""The error family: every mistake a person can make is one line, and every exit has a code.

The line follows one law: `<field path or file>: got <value>; <rule>. <what to do>.`
Errors carry that line as their only argument, so they cross process borders (pickle) whole.
"""

from typing import ClassVar

from datasets.errors import DataError, LoaderError, StoreError
from inception.errors import ModelError


class RayceptionError(Exception):
    """Base of what a person is told in one line. `exit_code` is the command's."""

    exit_code: ClassVar[int] = 4


class JobError(RayceptionError):
    """The job (its YAML, an override, an argument) is wrong: exit code 2."""

    exit_code = 2


class ServiceError(RayceptionError):
    """The cluster or a service refused or cannot be reached: exit code 3."""

    exit_code = 3


class LeaseLost(ServiceError):
    """Another driver goes on with the run."""


class TrainingError(RayceptionError):
    """Training began and failed: exit code 4."""

    exit_code = 4


class Rollback(RayceptionError):
    """A step whose loss is no finite number: the run goes on before it, and without it."""


# What a person is told in one line, whichever package says it.
EXPECTED_ERRORS = (RayceptionError, DataError, StoreError, LoaderError, ModelError)


def exit_code_of(error: BaseException) -> int:
    """0 done, 2 the job is wrong, 3 a cluster or service refused, 4 training failed."""
    if isinstance(error, RayceptionError):
        return error.exit_code
    if isinstance(error, DataError | ModelError):
        return JobError.exit_code
    if isinstance(error, StoreError | LoaderError):
        return ServiceError.exit_code
    return TrainingError.exit_code
