"""The text of a YAML file: its mistakes, and what YAML reads otherwise than it is written.

PyYAML reads YAML 1.1 (https://yaml.org/type/): `on` is true, `0755` is 493, `1:30` is 90, `1.10` is
1.1 and `695e0514` infinity. A person who writes them means text, or a number to the base of ten.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestration.errors import JobError
from orchestration.job.cluster import SECRET_PATTERN

TEXT_TYPES = (str, str | None, list[str], dict[str, str], str | list[str])
OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")  # 8 or 60
MERGE_TAG, MAP_TAG, TEXT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("merge", "map", "str"))


def read_text(path: Path) -> str:
    """Raises JobError if the file is not UTF-8, whatever this machine's locale is."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise JobError(describe_mistake(path, error)) from error


def describe_mistake(path: Path, error: Exception) -> str:
    """The message of an error that PyYAML or OmegaConf raised while it read the file."""
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark is not None else ""
    problem = (str(getattr(error, "problem", None) or "").splitlines() or [""])[0]
    subject = problem.rpartition(" ")[2].strip("'")
    if isinstance(error, UnicodeDecodeError | yaml.reader.ReaderError):
        return (
            f"{path}: got bytes that are not UTF-8 text, or control characters; a job is a UTF-8 "
            "file. Save it in that encoding."
        )
    if isinstance(error, RecursionError):
        return f"{path}: got too many levels; a job has four. Correct its brackets and indentation."
    if "another document" in problem:
        return (
            f"{path}: got a second document{line}; a file holds one job. Remove the line `---`, or "
            "write what follows into a file of its own."
        )
    if "'\\t'" in problem:
        return f"{path}: got a tab{line}; YAML takes spaces. Replace the tab by spaces."
    if "duplicate key" in problem:
        return (
            f"{path}: got the key {subject} again{line}; a section has each key once. Remove one "
            "of the two."
        )
    if "constructor for the tag" in problem:
        return (
            f"{path}: got the tag {subject}{line}; a job has plain values, and nothing in it is "
            "executed. Remove the tag."
        )
    problem = problem or "text that is not YAML"
    return f"{path}: got {problem}{line}; a job is YAML. Correct that line."


def check_scalars(
    node: yaml.Node | None, kind: Any, read: Callable[[str], Any], path: str = ""
) -> None:
    """Raises JobError for an unquoted value that YAML reads otherwise than it is written.

    kind: the type of the field, or the dataclass of the section. read: text -> what YAML makes of
    it. path: the field's, with a last dot.
    """
    if isinstance(node, yaml.MappingNode):
        types = {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
        default = object if is_dataclass(kind) else kind
        for key, value in node.value:
            if key.tag == MERGE_TAG:
                check_scalars(value, kind, read, path)
            else:
                check_scalars(value, types.get(key.value, default), read, f"{path}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            check_scalars(item, kind, read, path)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and "\n" not in node.value:
        _check_scalar(node.value, kind in TEXT_TYPES, read, path.rstrip("."))


def _check_scalar(text: str, is_text: bool, read: Callable[[str], Any], path: str) -> None:
    value = read(text) if is_text or OTHER_BASE.fullmatch(text) else None
    if value is None or isinstance(value, str):
        return
    if is_text and str(value) != text:
        is_secret = SECRET_PATTERN.search(path)  # its value may stand there
        got = "a value that YAML reads otherwise" if is_secret else f"{text}, in YAML {value}"
        raise JobError(
            f"{path}: got {got}; text that looks like a number, true or false is quoted. Put it in "
            "quotes."
        )
    if not is_text:
        raise JobError(
            f"{path}: got {text}, which YAML reads to the base of {8 if ':' not in text else 60}, "
            f"as {value}; numbers are written to the base of ten. Write the number that you mean."
        )


def check_override(override: str, kind: Any, read: Callable[[str], Any], path: str) -> None:
    """check_scalars for a `key=value`; a value that is not YAML passes."""
    key, _, text = override.partition("=")
    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        return
    for part in reversed(key.split(".")):
        node = yaml.MappingNode(MAP_TAG, [(yaml.ScalarNode(TEXT_TAG, part), node)])
    check_scalars(node, kind, read, path)
