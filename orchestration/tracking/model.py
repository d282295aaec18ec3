"""The trained model in MLflow: logged to its run and registered."""

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
from orchestration.tracking.runs import MODEL_TAG, NOTE_TAG, connect

SERVED = Path(__file__).with_name("served.py")  # the code stored with the model
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch")  # what that code imports
CHAMPION = "champion"  # alias of a registered model's best version
TOP1_TAG = "rayception.top1"  # percent
SCORED_ON_TAG = "rayception.scored_on"  # the validation split's fingerprint
REASON_TAG = "rayception.champion_stayed"  # why this version is not the champion
RUN_TAG = "rayception.run"
STEP_TAG = "rayception.step"

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every step of saving a model


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
    """Logs the network as a pyfunc model named `model`, from image bytes to class names
    (served.py); -> its models:/ URI.

    network: a torch.export file. classes: its C names, in order. crop: share of the shorter side.
    example: a JPEG, PNG or WebP. step: of the weights; the model gets the run's metrics of that
    step. More than six parameters: each is stored with the model. Nothing is pickled; loading needs
    only what the model's requirements.txt names. Raises ServiceError.
    """
    import pandas as pd

    mlflow.set_tracking_uri(run.uri)
    settings = {
        "classes": list(classes),
        "input_size": input_size,
        "crop": crop,
        "step": step,
        "preprocessing": (
            f"EXIF orientation applied; RGB; central square of {crop:g} of the shorter side; "
            f"resized to {input_size} x {input_size}, bilinear and antialiased; scaled from "
            "0..255 to -1..1"
        ),
    }
    with tempfile.TemporaryDirectory() as temporary:
        network_file, settings_file = Path(temporary, "network.pt2"), Path(temporary, "model.json")
        network_file.write_bytes(network)
        settings_file.write_text(json.dumps(settings, ensure_ascii=False, indent=1))
        with connect(run.uri) as client:
            # Created here because log() would do so only in a run that it starts and ends itself.
            model = client.create_logged_model(
                run.experiment_id,
                name="model",
                source_run_id=run.run_id,
                tags={STEP_TAG: str(step), NOTE_TAG: _note(classes, input_size, step)},
                params=client.get_run(run.run_id).data.params,
            )
            info = mlflow.models.Model.log(
                None,
                _PyfuncFlavor,
                name="model",
                run_id=run.run_id,
                model_id=model.model_id,
                step=step,
                # A copy, because MLmodel records the whole path; loading uses only the file name.
                python_model=shutil.copy(SERVED, temporary),
                artifacts={"network": str(network_file), "model": str(settings_file)},
                signature=_signature(),
                input_example=pd.DataFrame({"image": [example]}),
                pip_requirements=_requirements(),
                validate_serving_input=False,
            )
    return str(info.model_uri)


class _PyfuncFlavor:
    """mlflow.pyfunc as a flavor that accepts validate_serving_input. Without this parameter, log()
    loads the model and predicts the example, which takes seconds."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pyfunc.save_model(**settings)


def _note(classes: Sequence[str], input_size: int, step: int) -> str:
    """The model's description, in Markdown."""
    return (
        f"Takes a column `image` of JPEG, PNG or WebP bytes and returns the most likely of "
        f"{len(classes):,} classes, its probability, and the top five. Weights of step {step:,}. "
        f"It takes images of any size and does its own preprocessing, to {input_size} x "
        f"{input_size} pixels. Loading needs only the packages in its requirements.txt:\n\n"
        "```python\n"
        'model = mlflow.pyfunc.load_model("models:/<the id of this model>")\n'
        'model.predict(pandas.DataFrame({"image": [open("cat.jpg", "rb").read()]}))\n'
        "```"
    )


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


def _requirements() -> list[str]:
    """The installed versions, without a build's suffix such as +cpu, which no package index has."""
    versions = {name: importlib.metadata.version(name) for name in REQUIREMENTS}
    return [f"{name}=={version.split('+')[0]}" for name, version in versions.items()]


def register_model(
    run: RunRef, model_uri: str, *, name: str, top1: float, scored_on: str
) -> tuple[int, bool]:
    """Registers the run's model under `name`, the same model_uri once; -> (its version, whether
    this is the champion now).

    top1: percent on the validation split whose fingerprint is scored_on. The alias `champion` moves
    to this version unless another one has it whose top-1 is not lower or not comparable, as it was
    measured on another split; a tag of this version then gives the reason. MLflow has no
    compare-and-set: of two runs that register at the same moment the last one moves the alias.
    Raises ServiceError.
    """
    with connect(run.uri) as client:
        version = _version_of(
            client, run, model_uri, name, {TOP1_TAG: str(top1), SCORED_ON_TAG: scored_on}
        )
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        if champion is not None and int(champion) != version:
            tags = client.get_model_version(name, str(champion)).tags
            if (reason := _reason_to_keep(tags, top1, scored_on)) is not None:
                reason = f"version {champion} {reason}"
                client.set_model_version_tag(name, str(version), REASON_TAG, reason)
                return version, False
        client.set_registered_model_alias(name, CHAMPION, str(version))
        client.delete_model_version_tag(name, str(version), REASON_TAG)
    return version, True


def _reason_to_keep(champion_tags: dict[str, str], top1: float, scored_on: str) -> str | None:
    """Why the champion with these tags keeps its alias; None if it does not."""
    if TOP1_TAG not in champion_tags:
        return "was made champion by hand"
    if SCORED_ON_TAG not in champion_tags:
        return f"has no tag {SCORED_ON_TAG}; add it, or remove the alias"
    if champion_tags[SCORED_ON_TAG] != scored_on:
        return "was scored on another held-out split; move the alias by hand"
    best = float(champion_tags[TOP1_TAG])
    return None if top1 > best else f"has a top-1 of {best:.2f} %"


def _version_of(
    client: MlflowClient, run: RunRef, model_uri: str, name: str, score_tags: dict[str, str]
) -> int:
    """The model's version under `name`, created with these tags if missing."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    model_tags = client.get_logged_model(model_id).tags
    # By the run, not by the name: quotes in a name would have to be escaped.
    versions = client.search_model_versions(f"run_id = '{run.run_id}'")
    matches = [v for v in versions if v.name == name and v.tags.get(MODEL_TAG) == model_uri]
    if matches:
        version = matches[0]
    else:
        tags = score_tags | {RUN_TAG: run.run_id, MODEL_TAG: model_uri}
        if STEP_TAG in model_tags:
            tags[STEP_TAG] = model_tags[STEP_TAG]
        version = client.create_model_version(
            name,
            source=model_uri,
            run_id=run.run_id,
            tags=tags,
            model_id=model_id,
            description=model_tags.get(NOTE_TAG),
        )
    # The UI shows the version on the pages of the run and of the model because of this tag.
    linked = json.loads(model_tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if (entry := {"name": name, "version": str(version.version)}) not in linked:
        value = json.dumps([*linked, entry])
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: value})
    return int(version.version)
