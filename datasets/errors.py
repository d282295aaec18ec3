"""Errors of data and storage. Each message is one line and ends with what to do about it."""


class DataError(Exception):
    """The data, or their description, are wrong or missing."""


class ShardError(DataError):
    """A shard is truncated, damaged, replaced or missing: the samples read from it are lost."""


class ImageError(DataError):
    """A sample's image is missing, damaged or too large."""


class LabelError(DataError):
    """A sample's label is missing or names no class."""


class StoreError(Exception):
    """The storage refused a request or cannot be reached."""


class StoreBusyError(StoreError):
    """The storage is overloaded (HTTP 5xx, 429, SlowDown) and stayed so over all attempts."""


class LoaderError(Exception):
    """A loader process died, or the decoder that a job asks for is not installed."""
