"""The trained model in MLflow: logged to its run, and registered under a name."""

import importlib.metadata
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import MODEL_TAG, NOTE_TAG, answering

SERVED = Path(__file__).with_name("served.py")  # the model's code: stored with it
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch")  # what that file imports
CHAMPION = "champion"  # alias of a registered model's best version
TOP1_TAG = "rayception.top1"  # percent
SCORED_ON_TAG = "rayception.scored_on"  # the held-out split's fingerprint
WHY_TAG = "rayception.champion_stayed"  # why this version did not become it
RUN_TAG = "rayception.run"
STEP_TAG = "rayception.step"

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it narrates each of its steps


def log_classifier(
    run: RunRef,
    network: bytes,
    *,
    classes: Sequence[str],
    input_size: int,
    crop: float,
    example: bytes,
    step: int,
) -> str:
    """The network as a pyfunc model named `model`, which takes images' bytes and answers with class
    names (served.py); -> its models:/ URI.

    network: the bytes of a torch.export file. classes: its C names in order. crop: share of the
    shorter side. example: a JPEG, PNG or WebP. step: of its weights; the model gets the run's
    metrics of that step. Nothing is pickled, and what requirements.txt names is all that loading
    needs. Raises ServiceError.
    """
    mlflow.set_tracking_uri(run.uri)
    client = MlflowClient(tracking_uri=run.uri)
    with tempfile.TemporaryDirectory() as here:
        artifacts = _write_artifacts(
            Path(here), network, classes=classes, input_size=input_size, crop=crop, step=step
        )
        with answering(run.uri):
            # Made here, not by log(): that would want the run started again, and end it.
            made = client.create_logged_model(
                run.experiment_id,
                name="model",
                source_run_id=run.run_id,
                tags={STEP_TAG: str(step), NOTE_TAG: _note(classes, input_size, step)},
                params=client.get_run(run.run_id).data.params,
            )
            info = mlflow.models.Model.log(
                None,
                _WrittenOnly,
                name="model",
                run_id=run.run_id,
                model_id=made.model_id,
                step=step,
                # A copy, because MLmodel keeps the path; its base name is all that loading reads.
                python_model=shutil.copy(SERVED, here),
                artifacts=artifacts,
                signature=_signature(),
                input_example=_example(example),
                pip_requirements=_requirements(),
                validate_serving_input=False,
            )
    return str(info.model_uri)


class _WrittenOnly:
    """mlflow.pyfunc as a flavor that takes validate_serving_input. Without it, log() loads the
    model and asks it about the example, for seconds in which a person waits."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pyfunc.save_model(**settings)


def _note(classes: Sequence[str], input_size: int, step: int) -> str:
    """The model's description, in Markdown."""
    return (
        f"Takes a column `image` of JPEG, PNG or WebP bytes, and answers with the likeliest of "
        f"{len(classes):,} classes, its probability, and the best five. Weights of step {step:,}; "
        f"it looks at {input_size} x {input_size} pixels and does its own preprocessing. "
        "Loading needs what its requirements.txt names, and no checkout:\n\n"
        "```python\n"
        'model = mlflow.pyfunc.load_model("models:/<the id of this model>")\n'
        'model.predict(pandas.DataFrame({"image": [open("cat.jpg", "rb").read()]}))\n'
        "```"
    )


def _write_artifacts(
    folder: Path,
    network: bytes,
    *,
    classes: Sequence[str],
    input_size: int,
    crop: float,
    step: int,
) -> dict[str, str]:
    """The two files that served.py reads, by the names that it calls them."""
    (folder / "network.pt2").write_bytes(network)
    said = {
        "classes": list(classes),
        "input_size": input_size,
        "crop": crop,
        "step": step,
        "preprocessing": (
            f"turned as EXIF says; RGB; the central square, {crop:g} of the shorter side; resized "
            f"to {input_size} x {input_size}, bilinear and antialiased; scaled from 0..255 to -1..1"
        ),
    }
    (folder / "model.json").write_text(json.dumps(said, ensure_ascii=False, indent=1))
    return {"network": str(folder / "network.pt2"), "model": str(folder / "model.json")}


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.string), "classes"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )


def _example(image: bytes) -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [image]})


def _requirements() -> list[str]:
    """The versions at hand; a build's own suffix, such as +cpu, is no index's."""
    versions = {name: importlib.metadata.version(name) for name in REQUIREMENTS}
    return [f"{name}=={version.split('+')[0]}" for name, version in versions.items()]


def register_model(
    run: RunRef, model_uri: str, *, name: str, top1: float, scored_on: str
) -> tuple[int, bool]:
    """Registers the run's model under `name`; -> (its version, whether that is the champion now).

    top1: percent of the held-out split whose fingerprint is scored_on. The alias `champion` moves
    to the version where no other has it, or one with a lower top-1 of the same split: percents of
    different images compare nothing. Where it stays, the version's tag says why. The same
    model_uri again is the same version. MLflow cannot compare and set: of two runs that register at
    the same moment the last one moves it. Raises ServiceError.
    """
    client = MlflowClient(tracking_uri=run.uri, registry_uri=run.uri)
    with answering(run.uri):
        said = {TOP1_TAG: str(top1), SCORED_ON_TAG: scored_on}
        version = _version_of(client, run, model_uri, name, said)
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        if champion is not None and int(champion) != version:
            tags = client.get_model_version(name, str(champion)).tags
            if (why := _why_not(tags, top1, scored_on)) is not None:
                why = f"version {champion} {why}"
                client.set_model_version_tag(name, str(version), WHY_TAG, why)
                return version, False
        client.set_registered_model_alias(name, CHAMPION, str(version))
        client.delete_model_version_tag(name, str(version), WHY_TAG)
    return version, True


def _why_not(champion: dict[str, str], top1: float, scored_on: str) -> str | None:
    """What keeps the champion with these tags where it is; None for nothing."""
    if TOP1_TAG not in champion:
        return "was made champion by hand"
    if SCORED_ON_TAG not in champion:
        return f"does not say on which split it was scored; give it {SCORED_ON_TAG}, or no alias"
    if champion[SCORED_ON_TAG] != scored_on:
        return "was scored on another held-out split; move the alias by hand"
    best = float(champion[TOP1_TAG])
    return None if top1 > best else f"has a top-1 of {best:.2f} %"


def _version_of(
    client: MlflowClient, run: RunRef, model_uri: str, name: str, said_of_it: dict[str, str]
) -> int:
    """The version that this model has under `name`, made with these tags where it has none."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    said = client.get_logged_model(model_id).tags
    # By the run, not by the name: a name's quotes would have to be escaped.
    of_run = client.search_model_versions(f"run_id = '{run.run_id}'")
    made = next(
        (one for one in of_run if one.name == name and one.tags.get(MODEL_TAG) == model_uri), None
    )
    if made is None:
        tags = said_of_it | {RUN_TAG: run.run_id, MODEL_TAG: model_uri}
        if STEP_TAG in said:
            tags[STEP_TAG] = said[STEP_TAG]
        made = client.create_model_version(
            name,
            source=model_uri,
            run_id=run.run_id,
            tags=tags,
            model_id=model_id,
            description=said.get(NOTE_TAG),
        )
    # By this tag the UI shows the version on the pages of the run and of the model.
    versions = json.loads(said.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if (entry := {"name": name, "version": str(made.version)}) not in versions:
        listed = json.dumps([*versions, entry])
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: listed})
    return int(made.version)
