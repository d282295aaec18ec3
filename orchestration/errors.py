"""The exception hierarchy. Every error that a user can cause is one line with an exit code.

The line follows one law: `<field path or file>: got <value>; <rule>. <what to do>.`
It is the exception's only argument, so errors cross process boundaries (pickle) intact.
"""

from typing import ClassVar

from datasets.errors import DataError, LoaderError, StoreError
from inception.errors import ModelError


class RayceptionError(Exception):
    """Base class. `exit_code` is the exit status of the command."""

    exit_code: ClassVar[int] = 4


class JobError(RayceptionError):
    """The job is wrong: its YAML, an override or an argument."""

    exit_code = 2


class ServiceError(RayceptionError):
    """The cluster or a service is unreachable or refused a request."""

    exit_code = 3


class LeaseLost(ServiceError):
    """Another driver now owns the run."""


class TrainingError(RayceptionError):
    """Training started and failed."""


class Rollback(RayceptionError):
    """A loss is not finite: the run returns to the last checkpoint and skips that step."""


class RankMismatch(RayceptionError):
    """Ranks that compute the same sums have different bits: one of them runs on a broken machine.
    What it computed since the last checkpoint is computed again."""


# Reported to the user as one line, without a traceback.
EXPECTED_ERRORS = (RayceptionError, DataError, StoreError, LoaderError, ModelError)


def exit_code_of(error: BaseException) -> int:
    """2: the job is wrong. 3: a cluster or service failed. 4: training or anything else failed."""
    if isinstance(error, RayceptionError):
        return error.exit_code
    if isinstance(error, DataError | ModelError):
        return JobError.exit_code
    if isinstance(error, StoreError | LoaderError):
        return ServiceError.exit_code
    return TrainingError.exit_code
