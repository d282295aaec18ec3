"""Errors in a network's description or weights."""

from collections.abc import Sequence
from difflib import get_close_matches


class ModelError(ValueError):
    """One line: `<name>: got <value>; <rule>. <what to do>.`"""


def unknown_name(path: str, value: object, known: Sequence[str]) -> ModelError:
    """The error for a value that is not in `known`, with the closest match."""
    matches = get_close_matches(str(value), known, n=1)
    hint = f"Did you mean {matches[0]}?" if matches else "Choose one of them."
    return ModelError(f"{path}: got {value!r}; one of {', '.join(known)}. {hint}")
