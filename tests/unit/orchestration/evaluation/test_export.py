"""What `export` refuses."""

from pathlib import Path

import pytest

from inception.network import build_network
from orchestration.cli.checkpoints import export
from orchestration.errors import JobError
from orchestration.evaluation.export import export_network
from orchestration.evaluation.trained import TrainedNetwork
from orchestration.job.load import load_job, to_dict
from orchestration.run.record import RunRecord

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file of an untrained network."""
    job = load_job(ROOT / "jobs" / "quickstart.yaml")
    classes = [str(digit) for digit in range(10)]
    network = build_network(job.model.architecture())
    trained = TrainedNetwork(
        url="s3://runs/a/step-000000001",
        job=job,
        classes=tuple(classes),
        step=1,
        weights={"raw": network.state_dict()},
        record=RunRecord(
            name="a", job=to_dict(job), classes=classes, experiment_id="1", run_id="dacff405"
        ),
    )
    path = tmp_path_factory.mktemp("exported") / "digits.safetensors"
    export_network(trained, "raw", path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2", ".onnx"])
def test_an_exported_file_is_refused_in_one_line(
    exported: Path, suffix: str, tmp_path: Path
) -> None:
    source, target = tmp_path / f"digits{suffix}", tmp_path / "again.safetensors"
    source.write_bytes(exported.read_bytes())
    with pytest.raises(JobError) as caught:
        export(str(source), target)
    message = str(caught.value)
    assert message.startswith(f"{source}: got ")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == [source]
