"""A sample's label file -> its label, a class's number or name. Pure.

A label rule says which file: `cls` or `txt`, or `json:FIELD` (a field of a JSON object). The
manifest holds the split's rule and numbers its classes.
"""

import json
from collections.abc import Mapping
from typing import Any

from datasets.errors import LabelError

LABEL_EXTENSIONS = ("cls", "txt", "json")  # in order of preference
JSON_FIELDS = ("label", "cls", "class")
DEFAULT_RULE = "cls"
MAX_LABEL_BYTES = 2**16
BYTE_ORDER_MARK = "\ufeff"  # Windows' editors begin a file with it


def find_rule(extensions: Mapping[str, Any], field: str | None = None) -> str | None:
    """The rule for a sample with these files; None if none of them can hold a label.

    field: of a JSON object; None takes the first of `label`, `cls`, `class` that it has.
    """
    if field is not None:
        return f"json:{field}"
    for extension in LABEL_EXTENSIONS[:2]:
        if extension in extensions:
            return extension
    values = _parse_json(bytes(extensions.get("json", b"")))
    if isinstance(values, dict):
        return next((f"json:{name}" for name in JSON_FIELDS if name in values), None)
    return None


def label_extension(rule: str) -> str:
    return rule.partition(":")[0]


def label_text(sample: Mapping[str, Any], rule: str, where: str) -> str:
    """The label, a number or a name, as its file states it, with the byte order mark that it may
    begin with. Raises LabelError without a label."""
    extension, _, field = rule.partition(":")
    content = sample.get(extension)
    if content is None and extension == "cls":
        extension, content = "txt", sample.get("txt")
    if content is None:
        raise LabelError(
            f"{where}: got {files_of(sample)}; a sample has a label, .{label_extension(rule)}. "
            "Pack the split again."
        )
    content = bytes(content)
    if len(content) > MAX_LABEL_BYTES:
        raise LabelError(
            f"{where}.{extension}: got {len(content)} bytes; a label has at most "
            f"{MAX_LABEL_BYTES}. Fix the label."
        )
    if not field:
        return content.decode("utf-8", "replace").strip()
    values = _parse_json(content)
    label = values.get(field) if isinstance(values, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise LabelError(
            f"{where}.json: got {content[:40]!r}; a JSON object with the field {field!r}, a number "
            "or a name. Fix the label, or index the split again with its --label-field."
        )
    return str(label).strip()


def without_mark(text: str) -> str:
    """A label without its byte order mark, which is no part of it."""
    return text.removeprefix(BYTE_ORDER_MARK).strip()


def is_class_number(text: str) -> bool:
    """Whether a label is a number and not a name."""
    return text.isascii() and text.isdigit() and len(text) < 10


def files_of(sample: Mapping[str, Any]) -> str:
    """The extensions of a sample's files, for messages."""
    return ", ".join(f".{key}" for key in sample if not key.startswith("__")) or "no file"


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
