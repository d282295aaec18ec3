"""The logged model as others use it: image bytes in, class names out, and no rayception there.

Against the real stack; the cold load installs what the model's requirements.txt names into an
environment of its own.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets.images.augment import resize_views
from datasets.images.decode import decode_image
from datasets.loading.batch import empty_buffer
from inception.layers import normalize
from inception.network import InceptionNet, build_network, evaluation_graph
from orchestration.evaluation.trained import TrainedNetwork, classify
from orchestration.job.job import Job
from orchestration.job.load import load_job
from orchestration.run.metrics import RAW
from orchestration.tracking.model import log_classifier, register_model
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import log_metrics, open_run, run_status
from orchestration.worker.final_network import encode_graph
from tests.integration.conftest import ROOT, Home
from tests.unit.datasets.photos import photo_samples
from tests.waiting import BUSY

CLASSES = ("ant", "bee", "Käfer", "dragonfly", "earwig", "fly", "gnat")
SIZE = 107  # odd, and no side of any photograph divides by it
CROP = 0.8
STEP = 40
COLD = """
import importlib.util, json, sys
import mlflow.pyfunc
import pandas as pd
assert importlib.util.find_spec("orchestration") is None
model = mlflow.pyfunc.load_model(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    table = model.predict(pd.DataFrame({"image": [file.read()]}))
print(json.dumps(table.to_dict("records")))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    uri: str  # of the server
    run: RunRef
    model_uri: str
    trained: TrainedNetwork


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Whole ones, small ones of every usual form, and those that have to be turned or flattened."""
    found: dict[str, bytes] = {}
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        found[name] = encode(Image.fromarray(pixels), "JPEG")
    for sample in photo_samples(30):
        found[sample["__key__"]] = next(sample[kind] for kind in ("jpg", "png") if kind in sample)
    image = Image.fromarray(load_sample_images().images[1]).resize((320, 200))
    turned = Image.Exif()
    turned[0x0112] = 6
    found["turned"] = encode(image, "JPEG", exif=turned)
    found["webp"] = encode(image, "WEBP", lossless=True)
    see_through = image.convert("RGBA")
    see_through.putalpha(image.convert("L"))
    found["alpha"] = encode(see_through, "PNG")
    found["palette"] = encode(image.convert("P"), "PNG")
    found["16 bits"] = encode(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"
    )
    return found


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def views(job: Job, content: bytes) -> torch.Tensor:
    """uint8 (1, 3, S, S), as `predict` sees it."""
    row = empty_buffer(1, job.model.input_size).images
    resize_views(row, decode_image(content, "an image"), crops=1, fraction=job.data.eval_crop)
    return row


def build(job: Job, contents: list[bytes]) -> InceptionNet:
    """A narrow network of random weights that tells these images apart: batch norms know their
    statistics, and logits are spread like a trained network's."""
    network = build_network(job.model.architecture(), seed=3).train()
    x = normalize(torch.cat([views(job, content) for content in contents]))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass is enough
    with torch.no_grad():
        network(x)
        network.eval()
        logits = network(x)
        classifier = network.get_submodule(network.architecture.classifier)
        assert isinstance(classifier, torch.nn.Linear)
        classifier.bias.sub_(logits.mean(0))
        spread = float(logits.std(0).mean())
        classifier.weight.mul_(2 / spread)
        classifier.bias.mul_(2 / spread)
    return network


@pytest.fixture(scope="module")
def served(shared_home: Home, photographs: dict[str, bytes]) -> Iterator[Served]:
    uri = shared_home.use_mlflow()
    job = load_job(
        ROOT / "jobs" / "quickstart.yaml",
        [
            f"model.num_classes={len(CLASSES)}", f"model.input_size={SIZE}", "model.width=0.125",
            f"data.eval_crop={CROP}", "model.precision=fp32",
        ],
    )  # fmt: skip
    network = build(job, list(photographs.values()))
    run = open_run(uri, experiment="served", name="a-run", params={"a": 1}, tags={})
    log_metrics(run, {"val/top1": 12.5}, step=STEP)
    model_uri = log_classifier(
        run,
        encode_graph(evaluation_graph(network)),
        classes=CLASSES,
        input_size=SIZE,
        crop=CROP,
        example=photographs["china"],
        step=STEP,
    )
    trained = TrainedNetwork(
        url="memory", job=job, classes=CLASSES, step=STEP,
        weights={RAW: network.state_dict()}, record=None,
    )  # fmt: skip
    yield Served(uri=uri, run=run, model_uri=model_uri, trained=trained)
    mlflow.set_tracking_uri(None)


def table_of(contents: list[bytes]) -> pd.DataFrame:
    return pd.DataFrame({"image": contents})


def test_answers_as_predict_does(served: Served, photographs: dict[str, bytes]) -> None:
    model = mlflow.pyfunc.load_model(served.model_uri)
    table = model.predict(table_of(list(photographs.values())))
    expected = classify(served.trained, photographs, crops=1, kind=RAW, top=5)
    assert list(table.columns) == ["class", "probability", "classes", "probabilities"]
    for (name, best), (_, row) in zip(expected, table.iterrows(), strict=True):
        assert row["classes"] == [class_name for class_name, _ in best], name
        assert row["probabilities"] == pytest.approx([p for _, p in best], abs=0.002), name
        assert (row["class"], row["probability"]) == (row["classes"][0], row["probabilities"][0])
    # The comparison has teeth: the images are told apart.
    assert len(set(table["class"])) > 3
    assert table["probability"].max() - table["probability"].min() > 0.3


def test_takes_one_image_and_names_a_broken_one(
    served: Served, photographs: dict[str, bytes]
) -> None:
    model = mlflow.pyfunc.load_model(served.model_uri)
    [row] = model.predict([{"image": photographs["flower"]}]).to_dict("records")
    assert row["class"] in CLASSES
    good = [photographs["flower"]] * 40
    with pytest.raises(ValueError, match=r"^row 40: got 5000 bytes that are no whole image") as it:
        model.predict(table_of([*good, photographs["china"][:5000]]))
    assert "\n" not in str(it.value)
    with pytest.raises(ValueError, match=r"^row 0: got 3 bytes"):
        model.predict(table_of([b"GIF"]))
    with pytest.raises(ValueError, match=r"^row 0: got str; a row's image is the bytes"):
        model.predict(table_of(["/photos/flower.jpg"]))  # type: ignore[list-item]


def test_what_is_stored(served: Served, photographs: dict[str, bytes], tmp_path: Path) -> None:
    """Signature, a real image as example that a JSON request can carry, and no pickle."""
    info = mlflow.models.get_model_info(served.model_uri)
    assert info.signature.inputs.input_names() == ["image"]
    assert Path(info.flavors["python_function"]["model_code_path"]).name == "served.py"
    folder = Path(mlflow.artifacts.download_artifacts(served.model_uri, dst_path=str(tmp_path)))
    said = json.loads((folder / "artifacts" / "model.json").read_text())
    assert (said["classes"], said["input_size"], said["crop"]) == (list(CLASSES), SIZE, CROP)
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == [
        "mlflow", "numpy", "pandas", "pillow", "torch",
    ]  # fmt: skip
    assert not list(folder.rglob("*.pkl"))
    with zipfile.ZipFile(folder / "artifacts" / "network.pt2") as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")), name
            assert b'"use_pickle": true' not in content, name
    mlflow.models.predict(
        served.model_uri,
        input_path=str(folder / "serving_input_example.json"),
        content_type="json",
        env_manager="local",
        output_path=str(tmp_path / "answer.json"),
    )
    [answer] = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    [expected] = classify(served.trained, {"china": photographs["china"]}, crops=1, kind=RAW, top=1)
    assert answer["class"] == expected[1][0][0]


def test_the_run_goes_on_and_its_metrics_stay_single(served: Served) -> None:
    client = MlflowClient(tracking_uri=served.uri)
    assert run_status(served.run) == "RUNNING"
    assert len(client.get_metric_history(served.run.run_id, "val/top1")) == 1
    model = client.get_logged_model(served.model_uri.removeprefix("models:/"))
    assert (model.name, model.source_run_id) == ("model", served.run.run_id)
    assert model.experiment_id == served.run.experiment_id
    assert [(one.key, one.value, one.step) for one in model.metrics] == [("val/top1", 12.5, STEP)]


def test_only_a_better_one_becomes_champion(served: Served, photographs: dict[str, bytes]) -> None:
    client = MlflowClient(tracking_uri=served.uri, registry_uri=served.uri)
    name = "insects o' the garden"
    runs = [served.run] + [
        open_run(served.uri, experiment="served", name=f"run-{i}", params={}, tags={})
        for i in (2, 3)
    ]
    network = served.trained.build(RAW)
    uris = [served.model_uri] + [
        log_classifier(
            run, encode_graph(evaluation_graph(network)), classes=CLASSES, input_size=SIZE,
            crop=CROP,
            example=photographs["flower"], step=STEP + 1,
        )
        for run in runs[1:]
    ]  # fmt: skip
    expected = [(90.0, True, "1"), (80.0, False, "1"), (95.0, True, "3")]
    for number, (run, uri, (top1, is_champion, champion)) in enumerate(
        zip(runs, uris, expected, strict=True), start=1
    ):
        for _ in range(2):  # again is the same
            done = register_model(run, uri, name=name, top1=top1, scored_on="a split")
            assert done == (number, is_champion)
        assert client.get_model_version_by_alias(name, "champion").version == champion
    again = register_model(runs[0], uris[0], name=name, top1=90.0, scored_on="a split")
    assert again == (1, False)
    why = "rayception.champion_stayed"
    assert client.get_model_version(name, "1").tags[why] == "version 3 has a top-1 of 95.00 %"
    # Percents of other images compare nothing.
    other = register_model(runs[1], uris[1], name=name, top1=99.0, scored_on="another split")
    assert other == (2, False)
    assert (
        "version 3 was scored on another held-out split"
        in client.get_model_version(name, "2").tags[why]
    )
    shown = client.get_logged_model(uris[0].removeprefix("models:/")).tags["mlflow.modelVersions"]
    assert json.loads(shown) == [{"name": name, "version": "1"}]  # once, for the UI
    assert "its own preprocessing" in client.get_model_version(name, "2").description
    tags = client.get_model_version(name, "2").tags
    assert tags["rayception.top1"] == "80.0"
    assert tags["rayception.run"] == runs[1].run_id
    assert tags["rayception.step"] == str(STEP + 1)
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    assert len(model.predict(table_of([photographs["china"]]))) == 1


@pytest.mark.exhaustive
def test_loads_in_an_environment_that_has_no_rayception(
    served: Served, photographs: dict[str, bytes], tmp_path: Path
) -> None:
    """As its requirements.txt says, from another folder; the answer is this process's."""
    mlflow.set_tracking_uri(served.uri)
    requirements = mlflow.pyfunc.get_model_dependencies(served.model_uri)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    lock = ROOT / "infra" / "requirements.lock"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "-r", requirements, "-c", str(lock)],
        check=True,
    )
    (tmp_path / "flower.jpg").write_bytes(photographs["flower"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL"))
    }
    done = subprocess.run(
        [str(python), "-c", COLD, served.model_uri, str(tmp_path / "flower.jpg")],
        cwd=elsewhere,
        env=environment | {"MLFLOW_TRACKING_URI": served.uri},
        capture_output=True,
        text=True,
        timeout=120 * BUSY,
    )
    assert done.returncode == 0, done.stderr
    [cold] = json.loads(done.stdout)
    model = mlflow.pyfunc.load_model(served.model_uri)
    [here] = model.predict(table_of([photographs["flower"]])).to_dict("records")
    assert cold["class"] == here["class"]
    assert cold["classes"] == here["classes"]
    assert cold["probabilities"] == pytest.approx(here["probabilities"], abs=1e-6)
