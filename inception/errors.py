"""What is wrong with a network's description or weights, in one line."""

from collections.abc import Sequence
from difflib import get_close_matches


class ModelError(ValueError):
    """`<name>: got <value>; <rule>. <what to do>.`"""


def unknown_name(path: str, value: object, known: Sequence[str]) -> ModelError:
    """The error for a name that is none of `known`, with the nearest one."""
    near = get_close_matches(str(value), known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "Choose one of them."
    return ModelError(f"{path}: got {value!r}; one of {', '.join(known)}. {hint}")
