"""A trained run after training: evaluated on any number of workers, predicted with, exported,
and swept beside others."""

import csv
import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.integration.conftest import Home
from tests.integration.quickstart.conftest import Finished
from tests.waiting import BUSY, wait_for


@pytest.fixture(scope="module")
def home(finished: Finished) -> Home:
    return finished.home


@pytest.fixture(scope="module")
def outcome(finished: Finished) -> dict[str, Any]:
    return finished.outcome


def run_url(outcome: dict[str, Any]) -> str:
    url: str = outcome["checkpoint_url"]
    return url.rpartition("/")[0]


def evaluate(home: Home, *arguments: str) -> dict[str, Any]:
    done = home.call("evaluate", *arguments, "--endpoint-url", "local", "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def evaluated(home: Home, outcome: dict[str, Any]) -> dict[str, Any]:
    return evaluate(home, run_url(outcome))


def client(home: Home) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=home.use_mlflow())


def artifact(home: Home, run_id: str, path: str, folder: Path) -> str:
    return Path(client(home).download_artifacts(run_id, path, str(folder))).read_text()


def test_evaluation_says_what_training_said(
    home: Home, outcome: dict[str, Any], evaluated: dict[str, Any], tmp_path: Path
) -> None:
    for kind, prefix in (("raw", "val"), ("average", "val_ema")):
        one = evaluated["weights"][kind]
        assert one["images"] == 360
        assert one["top1"] == pytest.approx(outcome["metrics"][f"{prefix}/top1"], abs=1e-6)
        assert one["top5"] == pytest.approx(outcome["metrics"][f"{prefix}/top5"], abs=1e-6)
        assert one["loss"] == pytest.approx(outcome["metrics"][f"{prefix}/loss"], abs=1e-4)
    run_id = outcome["run"]["run_id"]
    assert evaluated["run_id"] == run_id
    metrics = client(home).get_run(run_id).data.metrics
    assert metrics["eval/top1"] == evaluated["weights"]["raw"]["top1"]
    assert metrics["eval_ema/calibration_error"] >= 0
    text = artifact(home, run_id, "evaluation/1-crop/average/predictions.csv", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len({row["image"] for row in rows}) == 360
    right = sum(row["truth"] == row["predicted"] for row in rows)
    assert 100 * right / 360 == pytest.approx(evaluated["weights"]["average"]["top1"], abs=1e-9)
    text = artifact(home, run_id, "evaluation/1-crop/average/confusion.csv", tmp_path)
    matrix = np.array([row[1:] for row in list(csv.reader(io.StringIO(text)))[1:]], dtype=int)
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 360
    assert int(matrix.trace()) == right


def test_one_worker_gives_bitwise_the_same_and_a_blacklist_takes_out(
    home: Home, outcome: dict[str, Any], evaluated: dict[str, Any], tmp_path: Path
) -> None:
    alone = evaluate(home, run_url(outcome), "cluster.accelerators=CPU:1")
    assert alone["weights"] == evaluated["weights"]
    run_id = outcome["run"]["run_id"]
    text = artifact(home, run_id, "evaluation/1-crop/raw/predictions.csv", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text)))
    wrong = [row["image"] for row in rows if row["truth"] != row["predicted"]]
    blacklist = tmp_path / "blacklist.txt"
    blacklist.write_text("# those that it gets wrong\n" + "\n".join(wrong))
    left = evaluate(home, run_url(outcome), "--weights", "raw", "--blacklist", str(blacklist))
    assert left["blacklisted"] == len(wrong)
    assert left["weights"] == {"raw": left["weights"]["raw"]}
    assert left["weights"]["raw"]["images"] == 360 - len(wrong)
    assert left["weights"]["raw"]["top1"] == 100.0


@pytest.mark.exhaustive
def test_an_ensemble_at_12_crops_outlives_a_killed_worker(
    home: Home, outcome: dict[str, Any]
) -> None:
    """Two checkpoints of the run; one of the two scorers is killed at work."""
    name = run_url(outcome)
    earlier = f"{name}/step-000000315"
    process = home.start(
        "evaluate", name, earlier, "--crops", "12", "--weights", "average", "--endpoint-url",
        "local", "--json",
    )  # fmt: skip
    output = home.folder / "stdout"

    def scorers() -> list[Any]:
        return home.processes("Scorer.score")

    wait_for(lambda: len(scorers()) == 2 or process.poll() is not None, 120, output.read_text)
    assert process.poll() is None, (home.folder / "stderr").read_text()
    scorers()[0].send_signal(signal.SIGKILL)
    assert process.wait(400 * BUSY) == 0, (home.folder / "stderr").read_text()
    found = json.loads(output.read_text())
    assert found["checkpoints"] == [outcome["checkpoint_url"], earlier]
    assert found["weights"]["average"]["images"] == 360
    assert found["run_id"] != outcome["run"]["run_id"]
    run = client(home).get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    assert metrics["eval_ema_12_crops/top1"] == found["weights"]["average"]["top1"] > 15


@pytest.fixture(scope="module")
def exported(
    home: Home, outcome: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    files = {}
    for suffix in ("safetensors", "pt2", "onnx"):
        files[suffix] = folder / f"digits.{suffix}"
        done = home.call(
            "export", run_url(outcome), "--to", str(files[suffix]), "--endpoint-url", "local"
        )
        assert done.returncode == 0, done.stderr
    return files


def test_exports_agree(exported: dict[str, Path]) -> None:
    from orchestration.evaluation.trained import load_trained

    trained = load_trained(None, str(exported["safetensors"]))  # type: ignore[arg-type]
    assert trained.classes == tuple("0123456789")
    for count in (1, 5):  # any number of images
        images = torch.randn(count, 3, 75, 75)
        with torch.no_grad():
            logits = trained.build("raw")(images)
            graph = torch.export.load(exported["pt2"]).module()(images)
        session = onnxruntime.InferenceSession(str(exported["onnx"]))
        (outside,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(graph, logits, atol=1e-5)
        assert np.allclose(outside, logits.numpy(), atol=1e-4)
    said = {p.key: p.value for p in onnx.load(str(exported["onnx"])).metadata_props}
    assert json.loads(said["rayception"])["classes"] == list("0123456789")


def test_prediction_needs_the_file_alone(
    home: Home, outcome: dict[str, Any], exported: dict[str, Path], tmp_path: Path
) -> None:
    digits = load_digits()
    paths = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(path)
        paths.append(str(path))
    nobody = Home(tmp_path / "nobody")
    nobody.folder.mkdir()
    done = nobody.call("predict", *paths, "--checkpoint", str(exported["safetensors"]), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    right = 0
    for number, image in enumerate(paths):
        p = [entry["probability"] for entry in found[image]]
        assert len(p) == 5
        assert p == sorted(p, reverse=True)
        right += found[image][0]["class"] == str(digits.target[number])
    assert right >= 16
    shown = home.call(
        "predict", paths[0], "--checkpoint", run_url(outcome), "--endpoint-url", "local",
        "--crops", "144", "--top", "2",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.strip().splitlines()) == 3
    assert "%" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evaluate", "s3://runs/none"], 2, "s3://runs/none: got no run there"),
        (["evaluate", "URL", "--crops", "10"], 2, "--crops: got 10; one of 1, 12, 144"),
        (["evaluate", "URL", "--weights", "best"], 2, "one of raw, average, both"),
        (["evaluate", "URL", "data.vall=x"], 2, "Did you mean val?"),
        (["evaluate", "URL/step-000000001"], 4, "an incomplete checkpoint"),
        (["evaluate", "URL", "--blacklist", "/nowhere"], 2, "/nowhere: got No such file"),
        (["export", "URL", "--to", "x.onx"], 2, "ends in .safetensors, .pt2, .onnx"),
        (["export", "URL", "--to", "/nowhere/x.pt2"], 2, "--to: got '/nowhere/x.pt2'"),
        (["predict", "README.md", "--checkpoint", "URL"], 2, "README.md: got"),
        (["predict", "none.png", "--checkpoint", "URL"], 2, "none.png: got No such file"),
        (["predict", "README.md", "--checkpoint", "jobs"], 2, "jobs: got no URL"),
    ],
)
def test_mistakes_are_one_line(
    home: Home, outcome: dict[str, Any], arguments: list[str], code: int, words: str
) -> None:
    called = [argument.replace("URL", run_url(outcome)) for argument in arguments]
    done = home.call(*called, "--endpoint-url", "local", timeout_s=60)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.exhaustive
def test_a_sweep_goes_on_where_it_ended(home: Home, tmp_path: Path) -> None:
    """Two rows by two seeds; one row cannot run. Called again, only that one is tried."""
    base = Path("jobs/quickstart.yaml").resolve()
    row = "inherits: {base}\nname: {name}\n{more}\n"
    short = "schedule: {epochs: 0.3, warmup_epochs: 0}\ntracking: {experiment: swept}"
    (tmp_path / "one.yaml").write_text(row.format(base=base, name="one", more=short))
    broken = f"{short}\ndata: {{train: 's3://data/gone/train', source: null, train_samples: null}}"
    (tmp_path / "two.yaml").write_text(row.format(base=base, name="two", more=broken))
    call = ["sweep", *(str(tmp_path / f"{name}.yaml") for name in ("one", "two"))]
    first = home.call(*call, "--seeds", "2", "--json", timeout_s=400)
    assert first.returncode == 4, first.stderr
    rows = {found["group"]: found for found in json.loads(first.stdout)["rows"]}
    assert (rows["one"]["runs"], rows["two"]["failed"]) == (2, 2)
    assert rows["one"]["lowest"] <= rows["one"]["top1"] <= rows["one"]["highest"]
    assert "s3://data/gone/train" in first.stderr
    again = home.call(*call, "--seeds", "2", "--json", timeout_s=400)
    assert again.stderr.count("has run already") == 2
    assert json.loads(again.stdout) == json.loads(first.stdout)
    found = client(home)
    experiment = found.get_experiment_by_name("swept")
    runs = found.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "rayception.sweep" in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run not in parents]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert len(children) == 2
    assert "| one | 2 |" in artifact(home, parents[0].info.run_id, "sweep.md", tmp_path)
