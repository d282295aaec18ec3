"""A split's URL: the prefix that holds its index, or the pattern of its shards
(`train-{000000..001023}.tar`), whose index is beside them under the pattern's name."""

import re

INDEX_FILE = "index.json"


def is_pattern(url: str) -> bool:
    """Whether the URL is a pattern of shards (`x-{00..09}.tar`, `x.tar`), not a prefix."""
    return "{" in url or url.endswith(".tar")


def split_folder(url: str) -> str:
    """The folder that shard names are relative to: the prefix, or the part of a pattern up to the
    last slash before its first brace."""
    url = url.rstrip("/")
    return url.partition("{")[0].rpartition("/")[0] if is_pattern(url) else url


def index_url(url: str) -> str:
    """The URL of the split's index.json."""
    url = url.rstrip("/")
    if not is_pattern(url):
        return f"{url}/{INDEX_FILE}"
    folder = split_folder(url)
    name = re.sub(r"[{}]", "", url[len(folder) + 1 :]).replace("/", "-").removesuffix(".tar")
    return f"{folder}/{name}.{INDEX_FILE}"
