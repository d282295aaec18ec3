"""What can be wrong with data and with where they lie; each error is one line with its remedy."""


class DataError(Exception):
    """The data, or their description, are wrong or not there."""


class StoreError(Exception):
    """The storage refused or cannot be reached."""
