"""A sample's label files -> its class number. Pure.

A rule names where the label stands: `cls` or `txt` (a number or a class name), or `json:FIELD`
(a field of a JSON object, a number or a name). The manifest holds the rule and the class names.
"""

import json
from collections.abc import Mapping
from typing import Any

from datasets.errors import LabelError

LABEL_EXTENSIONS = ("cls", "txt", "json")  # in the order they are looked for
JSON_FIELDS = ("label", "cls", "class")
DEFAULT_RULE = "cls"
MAX_LABEL_BYTES = 2**16


def find_rule(extensions: Mapping[str, Any], field: str | None = None) -> str | None:
    """The rule of a split whose samples have these files; None where none can hold a label.

    field: of a JSON object; left out, the first of `label`, `cls`, `class` that it has.
    """
    if field is not None:
        return f"json:{field}"
    for extension in LABEL_EXTENSIONS[:2]:
        if extension in extensions:
            return extension
    if "json" in extensions:
        values = _json(bytes(extensions["json"]))
        for name in JSON_FIELDS:
            if isinstance(values, dict) and name in values:
                return f"json:{name}"
    return None


def label_extension(rule: str) -> str:
    return rule.partition(":")[0]


def label_text(sample: Mapping[str, Any], rule: str, where: str) -> str:
    """What the label's file says, a number or a name. Raises LabelError where it says none."""
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
            f"{MAX_LABEL_BYTES}. Mend the label."
        )
    if not field:
        return content.decode("utf-8", "replace").strip()
    values = _json(content)
    found = values.get(field) if isinstance(values, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise LabelError(
            f"{where}.json: got {content[:40]!r}; a JSON object with the field {field!r}, a number "
            "or a name. Mend the label, or index the split again with its --label-field."
        )
    return str(found).strip()


def class_number(text: str, numbers: Mapping[str, int], num_classes: int, where: str) -> int:
    """The class that a label's text means: its number, else the place of its name.

    numbers: class name -> number. Raises LabelError.
    """
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < num_classes:
        return int(text)
    found = numbers.get(text)
    if found is None:
        raise LabelError(
            f"{where}: got the label {text[:40]!r}; a class is a number from 0 to "
            f"{num_classes - 1} or one of the split's class names. Mend the label, or index the "
            "split again."
        )
    return found


def files_of(sample: Mapping[str, Any]) -> str:
    return ", ".join(f".{key}" for key in sample if not key.startswith("__")) or "no file"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
