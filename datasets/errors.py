"""What can be wrong with data and with where they lie; each error is one line with its remedy."""


class DataError(Exception):
    """The data, or their description, are wrong or not there."""


class ShardError(DataError):
    """A shard is cut, damaged, replaced or gone: the samples of the range read from it are lost."""


class ImageError(DataError):
    """A sample's image is missing, damaged or too large."""


class LabelError(DataError):
    """A sample's label is missing or is no class."""


class StoreError(Exception):
    """The storage refused or cannot be reached."""


class StoreBusyError(StoreError):
    """The storage said that it cannot just now (5xx, SlowDown), however often it was asked."""


class LoaderError(Exception):
    """A loader process died."""
