"""YAML and key=value overrides -> Job, and Job <-> plain dict. The only importer of omegaconf.

OmegaConf merges, interpolates (`${oc.env:NAME}`) and converts to the dataclasses' types; its errors
are reworded in the form of the error law. A job is logged and stored, so no secret gets into it.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    KeyValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from omegaconf.resolvers import oc

from inception.errors import ModelError
from inception.options import Options
from orchestration.errors import JobError
from orchestration.job.cluster import SECRET_PATTERN
from orchestration.job.job import Job
from orchestration.job.rules import URL_CREDENTIALS
from orchestration.job.yaml_text import (
    check_override,
    check_scalars,
    describe_mistake,
    read_text,
)

Built = TypeVar("Built")
# What a field of each type expects; with None allowed, "... or null".
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple[float, ...]: "a list of numbers",
    tuple[float, float]: "two numbers, [smallest, largest]",
    list[str]: "a list such as [a, b]",
    dict[str, str]: "text by name, such as {NAME: text}",
    dict[str, float]: "numbers by name, such as {H100: 2.99}",
    str | list[str]: "text, or a list such as [a, b]",
    int | dict[str, int]: "a whole number, or {min: 2, max: 4}",
}
# What PyYAML, its constructors and OmegaConf raise.
UNREADABLE = (
    OmegaConfBaseException, yaml.YAMLError, ValueError, AttributeError, RecursionError,
)  # fmt: skip
TYPE_NAMES |= {kind | None: f"{TYPE_NAMES[kind]} or null" for kind in (int, float, str, bool)}


class _SecretVariable(Exception):
    """An interpolation names an environment variable that holds a secret."""


def _read_variable(name: str, *default: Any) -> Any:
    """OmegaConf's `oc.env`, but for secrets."""
    if SECRET_PATTERN.search(name):
        raise _SecretVariable(name)
    return oc.env(name, *default)


OmegaConf.register_resolver("oc.env", _read_variable, replace=True)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a YAML file, with overrides such as `optim.lr=0.1` applied in order.

    A file may build on others: `inherits: FILE`, or a list of them, relative to its own folder.
    Raises JobError: no such file, not YAML, an unknown key, a value of the wrong type, an
    environment variable that is not set, or a broken rule of a field.
    """
    job = _build(Job, _read(Path(path), ()), overrides, source=str(path))
    _check_urls(job)
    return job


def from_dict(values: dict[str, Any]) -> Job:
    """The job that `to_dict` wrote, maybe an earlier version, which let URLs with credentials pass.
    Raises JobError as load_job does."""
    return _build(Job, OmegaConf.create(values), (), source="job")


def apply_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """The job with `key=value` overrides. Raises JobError as load_job does."""
    if not overrides:
        return job
    changed = _build(Job, OmegaConf.create(to_dict(job)), overrides, source="job")
    _check_urls(changed, job)
    return changed


def load_options(overrides: Sequence[str]) -> Options:
    """Network options from overrides such as `stem=79`. Raises JobError as load_job does."""
    return _build(Options, OmegaConf.create(), overrides, source="options", prefix="model.options.")


def to_dict(job: Job) -> dict[str, Any]:
    """A plain nested dict: sent to workers and logged."""
    return asdict(job)


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
    text = read_text(path)
    try:
        root = yaml.compose(text)
        # OmegaConf.create reads a text as a key, and asserts that it is not a number.
        values = OmegaConf.create(text if isinstance(root, yaml.MappingNode) else "")
    except UNREADABLE as error:
        raise JobError(describe_mistake(path, error)) from error
    if not isinstance(values, DictConfig) or not values:
        content = "a list or a plain value" if root and root.value else "an empty file"
        raise JobError(
            f"{path}: got {content}; a job is a mapping such as `name: mine`. "
            "Start from jobs/quickstart.yaml."
        )
    check_scalars(root, Job, _read_scalar)
    try:
        inherits = values.pop("inherits", [])
    except OmegaConfBaseException as error:
        raise JobError(_reword(error, str(path))) from error
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


def _read_scalar(text: str) -> Any:
    """What YAML makes of an unquoted text."""
    (value,) = cast(list[Any], OmegaConf.to_container(OmegaConf.create(f"- {text}")))
    return value


def _build(
    kind: type[Built],
    values: DictConfig,
    overrides: Sequence[str],
    *,
    source: str,
    prefix: str = "",
) -> Built:
    """An instance of the dataclass `kind`. prefix: its path in a job, such as `model.options.`."""
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise JobError(
                f"override: got {text!r}; FIELD=VALUE. Write, for example, optim.lr=0.1."
            )
        check_override(text, kind, _read_scalar, prefix)
    layers = [values]
    try:
        layers.append(OmegaConf.from_dotlist(list(overrides)))
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *layers))
    except ModelError as error:  # already in the form of the error law
        raise JobError(str(error)) from error
    except (*UNREADABLE, TypeError) as error:
        for layer in layers:
            _check_types(OmegaConf.to_container(layer), kind, prefix)
        raise JobError(_reword(error, source)) from error
    assert isinstance(built, kind)
    return built


def _check_urls(job: Job, stored: Job | None = None) -> None:
    """Raises JobError for credentials in a URL of any field that `stored` has not."""
    known = {} if stored is None else flatten(to_dict(stored))
    for path, value in flatten(to_dict(job)).items():
        if path in known and known[path] == value:
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and URL_CREDENTIALS.search(text):
                raise JobError(
                    f"{path}: got a URL with a user or password in it; a job is logged and stored, "
                    "where others read it. Write the URL without them, and change that password."
                )


def _check_types(values: Any, kind: Any, prefix: str) -> None:
    """Raises JobError for the first key that the dataclass `kind` does not have, or value that is
    of another type than its field."""
    types = {field.name: field.type for field in fields(kind)}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in types:
            near = get_close_matches(str(key), types, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Remove it."
            owner = prefix.rstrip(".") or "a job"
            raise JobError(
                f"{path}: got a key that {owner} does not have; {', '.join(types)}. {hint}"
            )
        if is_dataclass(types[key]) and isinstance(value, dict):
            _check_types(value, types[key], f"{path}.")
            continue
        try:
            OmegaConf.merge(OmegaConf.structured(kind), {key: value})
        except (ValidationError, KeyValidationError, TypeError) as error:
            part = getattr(error, "full_key", None)  # such as variables.NAME
            got = repr(getattr(error, "value", None) if part else value)
            if SECRET_PATTERN.search(path):
                got = "another type"  # a secret's value may stand there
            raise JobError(
                f"{prefix}{part or key}: got {got}; {_accepted(types[key])}. Correct it (see "
                "jobs/README.md)."
            ) from error


def _accepted(kind: Any) -> str:
    """What a field of this type accepts."""
    if is_dataclass(kind):
        return f"a section with {', '.join(field.name for field in fields(kind))}"
    return TYPE_NAMES[kind]


def _reword(error: Exception, source: str) -> str:
    path = str(getattr(error, "full_key", None) or source)
    text = str(error).strip()
    first_line = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MissingMandatoryValue):
        return (
            f"{path}: got nothing; a job must set it. "
            f"Add {path} to {source}, or {path}=... to the command."
        )
    if isinstance(error, InterpolationResolutionError):
        return f"{path}: got {_describe_interpolation(error, first_line)}"
    return f"{path}: got an unreadable value; {first_line}. See jobs/README.md."


def _describe_interpolation(error: BaseException, first_line: str) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _SecretVariable):
            return (
                f"${{oc.env:{cause}}}, a variable that holds a secret by its name; a job is logged "
                "and stored, where others read it. Remove it: the services read their credentials "
                "from the environment of each node, where cluster.secrets can require it."
            )
        cause = cause.__cause__ or cause.__context__
    what = f"an interpolation that cannot be resolved ({first_line}); "
    if "Environment variable" in first_line:
        return f"{what}${{oc.env:NAME}} needs NAME in the environment. Set it, or write the value."
    if "Recursive" in first_line or "parent node" in first_line:
        return f"{what}fields cannot refer to each other in a circle. Write the value in one."
    return (
        f"{what}${{...}} names a field by its whole path, such as ${{optim.lr}}, or a variable as "
        "${oc.env:NAME}. Correct the name, or write the value."
    )


def _suggest_file(path: Path) -> str:
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.glob("*.y*ml"))
        if near := get_close_matches(path.name, names, n=1):
            return f"Did you mean {path.parent / near[0]}?"
    return "Start from jobs/quickstart.yaml."
