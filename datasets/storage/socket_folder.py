"""A temporary folder that is short enough for Unix sockets: the kernel takes paths of at most 107
bytes (unix(7): sun_path). Batch systems and macOS set a longer TMPDIR than that leaves room for."""

import os
import tempfile

from datasets.errors import StoreError

PATH_LIMIT_BYTES = 107
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def socket_folder(rest_bytes: int) -> str:
    """The temporary folder, or another one if sockets in it have too long paths. rest_bytes: of
    such a path after the folder. Raises StoreError if there is none."""
    longest = PATH_LIMIT_BYTES - rest_bytes
    for folder in (tempfile.gettempdir(), *SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= longest and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise StoreError(
        f"TMPDIR: got {tempfile.gettempdir()}, and none of {', '.join(SHORT_FOLDERS)} can be "
        f"written; sockets need a folder whose path has at most {longest} bytes. Set TMPDIR to "
        "one."
    )
