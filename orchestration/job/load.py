"""YAML and key=value overrides -> Job, and Job <-> plain dict. The only importer of omegaconf.

OmegaConf merges, interpolates (`${oc.env:NAME}`) and converts to the dataclasses' types; its errors
are reworded in the form of the error law.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from inception.errors import ModelError
from inception.options import Options
from orchestration.errors import JobError
from orchestration.job.job import Job

# What a field of each type expects; with None allowed, "... or null".
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple[float, ...]: "a list of numbers",
    tuple[float, float]: "two numbers, [smallest, largest]",
}
TYPE_NAMES |= {kind | None: f"{TYPE_NAMES[kind]} or null" for kind in (int, float, str, bool)}


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a YAML file, with overrides such as `optim.lr=0.1` applied in order.

    A file may build on others: `inherits: FILE`, or a list of them, relative to its own folder.
    Raises JobError: no such file, not YAML, an unknown key, a value of the wrong type, an
    environment variable that is not set, or a broken rule of a field.
    """
    return _build(_read(Path(path), ()), overrides, source=str(path))


def from_dict(values: dict[str, Any]) -> Job:
    """The job that `to_dict` wrote. Raises JobError as load_job does."""
    return _build(OmegaConf.create(values), (), source="job")


def apply_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """The job with `key=value` overrides. Raises JobError as load_job does."""
    return _build(OmegaConf.create(to_dict(job)), overrides, source="job") if overrides else job


def load_options(overrides: Sequence[str]) -> Options:
    """Network options from overrides such as `stem=79`. Raises JobError as load_job does."""
    minimal = {
        "name": "options",
        "data": {"train": "file:///train", "val": "file:///val"},
        "model": {"num_classes": 2},
        "schedule": {"epochs": 1},
    }
    prefixed = [f"model.options.{text}" for text in overrides]
    return _build(OmegaConf.create(minimal), prefixed, source="options").model.options


def to_dict(job: Job) -> dict[str, Any]:
    """A plain nested dict of numbers, strings, lists and None: sent to workers and logged."""
    plain = OmegaConf.to_container(OmegaConf.create(asdict(job)))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(job: Job) -> str:
    """The whole job, with its defaults, as YAML that load_job reads."""
    return str(OmegaConf.to_yaml(OmegaConf.create(to_dict(job))))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path, children: tuple[Path, ...]) -> DictConfig:
    """A file's values over those of the files that it inherits; of these, later ones win.

    children: the files that inherit this one, the outermost first.
    """
    if not path.is_file():
        if children:
            raise JobError(
                f"{children[-1]}: got inherits {path}, which is no file; it names files relative "
                "to its own folder. Correct the path."
            )
        raise JobError(f"{path}: got no such file; a job is a YAML file. {_suggest_file(path)}")
    if path.resolve() in [child.resolve() for child in children]:
        raise JobError(
            f"{path}: got a file that inherits itself; files cannot inherit in a circle. Remove "
            "one of the `inherits`."
        )
    try:
        values = OmegaConf.create(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or "text that is not YAML").splitlines()[0]
        raise JobError(f"{path}: got {problem}{line}; a job is YAML. Correct that line.") from error
    if not isinstance(values, DictConfig) or not values:
        content = "a list or a plain value" if values else "an empty file"
        raise JobError(
            f"{path}: got {content}; a job is a mapping such as `name: mine`. "
            "Start from jobs/quickstart.yaml."
        )
    inherits = values.pop("inherits", [])
    names = [inherits] if isinstance(inherits, str) else inherits
    is_list = isinstance(names, list | ListConfig)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise JobError(
            f"{path}: got inherits {inherits}; a file or a list of files. Write a "
            "path, or a list such as [base.yaml, recipe.yaml]."
        )
    parents = [_read(path.parent / name, (*children, path)) for name in names]
    merged = OmegaConf.merge(*parents, values)
    assert isinstance(merged, DictConfig)
    return merged


def _build(values: DictConfig, overrides: Sequence[str], *, source: str) -> Job:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise JobError(
                f"override: got {text!r}; FIELD=VALUE. Write, for example, optim.lr=0.1."
            )
    try:
        dotlist = OmegaConf.from_dotlist(list(overrides))
        job = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Job), values, dotlist))
    except ModelError as error:  # already in the form of the error law
        raise JobError(str(error)) from error
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        merged = OmegaConf.merge(values, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(merged, DictConfig)
        raise JobError(_reword(error, merged, source)) from error
    assert isinstance(job, Job)
    return job


def _reword(error: Exception, values: DictConfig, source: str) -> str:
    """values: all that was written, before it is checked against the fields."""
    path = str(getattr(error, "full_key", None) or "")
    text = str(error).strip()
    first_line = text.splitlines()[0] if text else type(error).__name__
    match error:
        case ConfigKeyError():
            section, _, key = path.rpartition(".")
            known = _field_names(_type_of(section))
            near = get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Remove it."
            owner = section or "a job"
            return f"{path}: got a key that {owner} does not have; {', '.join(known)}. {hint}"
        case MissingMandatoryValue():
            return (
                f"{path or source}: got nothing; a job must set it. "
                f"Add {path} to {source}, or {path}=... to the command."
            )
        case InterpolationResolutionError() | InterpolationKeyError():
            return (
                f"{path}: got an interpolation that cannot be resolved ({first_line}); "
                "${oc.env:NAME} needs NAME in the environment. Set it, or write the value."
            )
        case ValidationError():
            value = getattr(error, "value", None)
            if not path:  # OmegaConf does not name a section that was given as a plain value
                path, value = _plain_section(values, Job) or ("job", None)
            return f"{path}: got {value!r}; {_expected(path)}. Correct it (see jobs/README.md)."
    return f"{path or source}: got an unreadable value; {first_line}. See jobs/README.md."


def _type_of(path: str) -> Any:
    """The type of the field that a dotted path names ('' is Job itself), or None."""
    kind: Any = Job
    for name in path.split(".") if path else []:
        if not is_dataclass(kind):
            return None
        kind = next((f.type for f in fields(kind) if f.name == name), None)
    return kind


def _field_names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []


def _expected(path: str) -> str:
    kind = _type_of(path)
    if is_dataclass(kind):
        return f"a section with {', '.join(_field_names(kind))}"
    return TYPE_NAMES.get(kind, "another type")


def _plain_section(values: DictConfig, kind: Any, prefix: str = "") -> tuple[str, Any] | None:
    """Path and value of the first plain value that stands in the place of a section."""
    for f in fields(kind):
        if is_dataclass(f.type) and f.name in values:
            path, value = f"{prefix}{f.name}", values[f.name]
            if not isinstance(value, DictConfig):
                return path, value
            if found := _plain_section(value, f.type, f"{path}."):
                return found
    return None


def _suggest_file(path: Path) -> str:
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.glob("*.y*ml"))
        if near := get_close_matches(path.name, names, n=1):
            return f"Did you mean {path.parent / near[0]}?"
    return "Start from jobs/quickstart.yaml."
