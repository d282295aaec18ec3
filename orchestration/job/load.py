"""YAML and key=value overrides -> Job, and Job <-> plain dict. The only importer of omegaconf.

OmegaConf merges, interpolates (`${oc.env:NAME}`) and converts by the dataclasses' types; what it
finds wrong is said again here by the error law.
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


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a YAML file with overrides such as `optim.lr=0.1` applied in order.

    A file may build on others: `inherits: FILE`, or a list of them, relative to its own folder.
    Raises JobError: no such file, not YAML, a key that no job has, a value of the wrong type,
    an environment variable that is not set, or a rule of a field.
    """
    return _build(_read(Path(path), ()), overrides, source=str(path))


def _read(path: Path, below: tuple[Path, ...]) -> DictConfig:
    """A file's values over those of the files that it inherits, the first named lowest. below: the
    files that led here."""
    if not path.is_file():
        if below:
            raise JobError(
                f"{below[-1]}: got inherits {path}, which is no file; it names files relative to "
                "its own folder. Mend the path."
            )
        raise JobError(f"{path}: got no such file; a job is a YAML file. {_other_jobs(path)}")
    if path.resolve() in [one.resolve() for one in below]:
        raise JobError(f"{path}: got a file that inherits itself; a chain has an end. Cut it.")
    try:
        given = OmegaConf.create(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where is not None else ""
        problem = str(getattr(error, "problem", None) or "text that is not YAML").splitlines()[0]
        raise JobError(f"{path}: got {problem}{line}; a job is YAML. Mend that line.") from error
    if not isinstance(given, DictConfig) or not given:
        raise JobError(
            f"{path}: got {_kind(given)}; a job is a mapping such as `name: mine`. "
            "Begin from jobs/quickstart.yaml."
        )
    parents = given.pop("inherits", [])
    names = [parents] if isinstance(parents, str) else parents
    is_list = isinstance(names, list | ListConfig)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise JobError(f"{path}: got inherits {parents}; a file or a list of files. Write it so.")
    lower = [_read(path.parent / name, (*below, path)) for name in names]
    merged = OmegaConf.merge(*lower, given)
    assert isinstance(merged, DictConfig)
    return merged


def from_dict(values: dict[str, Any]) -> Job:
    """The job that `to_dict` wrote. Raises JobError as load_job does."""
    return _build(OmegaConf.create(values), (), source="job")


def override(job: Job, overrides: Sequence[str]) -> Job:
    """The job with `key=value` overrides. Raises JobError as load_job does."""
    return _build(OmegaConf.create(to_dict(job)), overrides, source="job") if overrides else job


def load_options(overrides: Sequence[str]) -> Options:
    """Options of a network from `stem=79` and the like. Raises JobError as load_job does."""
    smallest = {
        "name": "options",
        "data": {"train": "file:///train", "val": "file:///val"},
        "model": {"num_classes": 2},
        "schedule": {"epochs": 1},
    }
    given = [f"model.options.{override}" for override in overrides]
    return _build(OmegaConf.create(smallest), given, source="options").model.options


def to_dict(job: Job) -> dict[str, Any]:
    """A plain nested dict of numbers, strings, lists and None: what travels and what is logged."""
    plain = OmegaConf.to_container(OmegaConf.create(asdict(job)))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(job: Job) -> str:
    """The whole job, defaults written out, as a YAML that load_job takes."""
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


def _build(given: DictConfig, overrides: Sequence[str], *, source: str) -> Job:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise JobError(f"override: got {override!r}; FIELD=VALUE. Write it like optim.lr=0.1.")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Job), given, OmegaConf.from_dotlist(list(overrides))
        )
        job = OmegaConf.to_object(merged)
    except ModelError as error:  # said by the error law already
        raise JobError(str(error)) from error
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        everything = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(everything, DictConfig)
        raise JobError(_reword(error, everything, source)) from error
    assert isinstance(job, Job)
    return job


def _reword(error: Exception, given: DictConfig, source: str) -> str:
    path = str(getattr(error, "full_key", None) or "")
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    match error:
        case ConfigKeyError():
            section, _, key = path.rpartition(".")
            known = _field_names(section)
            near = get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Take it out."
            place = section or "a job"
            return f"{path}: got a key that {place} does not have; {', '.join(known)}. {hint}"
        case MissingMandatoryValue():
            return (
                f"{path or source}: got nothing; a job must say it. "
                f"Add {path} to {source}, or {path}=... to the command."
            )
        case InterpolationResolutionError() | InterpolationKeyError():
            return (
                f"{path}: got an interpolation that cannot be resolved ({first}); ${{oc.env:NAME}} "
                "needs NAME in the environment. Set it, or write the value."
            )
        case ValidationError():
            value = getattr(error, "value", None)
            if not path:  # OmegaConf does not say where a section was given as a plain value
                path, value = _misplaced(given)
            return f"{path}: got {value!r}; {_expected(path)}. Write it so (see jobs/README.md)."
    return f"{path or source}: got an unreadable value; {first}. See jobs/README.md."


def _section(path: str) -> Any:
    """The dataclass that a dotted path names ('' is Job itself), or None."""
    here: Any = Job
    for name in path.split(".") if path else []:
        here = next((f.type for f in fields(here) if f.name == name), None)
        if not is_dataclass(here):
            return None
    return here


def _field_names(section: str) -> list[str]:
    found = _section(section)
    return [f.name for f in fields(found)] if found is not None else []


def _expected(path: str) -> str:
    section, _, key = path.rpartition(".")
    owner = _section(section)
    kind: Any = next((f.type for f in fields(owner) if f.name == key), None) if owner else None
    if is_dataclass(kind):
        return f"a section with {', '.join(f.name for f in fields(kind))}"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        tuple[float, ...]: "a list of numbers",
        tuple[float, float]: "two numbers, [smallest, largest]",
    }
    if kind in words:
        return words[kind]
    optional: dict[Any, Any] = {kind | None: kind for kind in (int, float, str, bool)}
    return f"{words[optional[kind]]} or null" if kind in optional else "another type"


def _misplaced(given: DictConfig) -> tuple[str, Any]:
    """Where a plain value stands in a section's place."""
    for section in fields(Job):
        if is_dataclass(section.type) and section.name in given:
            value = given[section.name]
            if not isinstance(value, DictConfig):
                return section.name, value
            for part in fields(section.type):
                if is_dataclass(part.type) and part.name in value:
                    inner = value[part.name]
                    if not isinstance(inner, DictConfig):
                        return f"{section.name}.{part.name}", inner
    return "job", None


def _kind(value: object) -> str:
    return "an empty file" if not value else "a list or a plain value"


def _other_jobs(path: Path) -> str:
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.glob("*.y*ml"))
        near = get_close_matches(path.name, names, n=1)
        if near:
            return f"Did you mean {path.parent / near[0]}?"
    return "Begin from jobs/quickstart.yaml."
