"""The pages that a newcomer follows, run word for word."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.integration.conftest import ROOT, Home
from tests.test_docs import console_blocks

YAML = re.compile(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CLASSES = ("cat", "dog", "horse")


@pytest.fixture
def person(home: Home, tmp_path: Path) -> Iterator[Home]:
    """In a folder with `photos/`, one folder a class, and with the command on the path."""
    home.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    digits = load_digits()
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        images = digits.images[digits.target == label][:40]
        for number, pixels in enumerate(images, start=1):
            large = np.kron(pixels, np.ones((16, 16))) * 255 / 16
            Image.fromarray(large.astype(np.uint8)).save(folder / f"{number:04d}.jpg")
    yield home
    home.call("stack", "down", "--force")


def follow(page: Path, home: Home, folder: Path) -> str:
    """Runs a page's commands that can run here, in their order; -> what they print."""
    for name, text in YAML.findall(page.read_text()):
        (folder / name).write_text(text)
    script = "\n".join(commands for runs, commands in console_blocks(page) if runs)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, env=home.environment,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.exhaustive
def test_own_images_from_folders_to_predictions(person: Home, tmp_path: Path) -> None:
    told = follow(ROOT / "jobs" / "own-images.md", person, tmp_path)
    assert "cat" in told
    assert "tuned" in told
    assert (tmp_path / "tuned.onnx").stat().st_size > 1e5


@pytest.mark.exhaustive
def test_commands_of_the_packages_pages(person: Home, tmp_path: Path) -> None:
    for name in ("photos/train", "jobs"):  # what these pages take as given
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    photos = sorted((tmp_path / "photos").iterdir())
    (tmp_path / "photos" / "train").mkdir()
    for folder in photos:
        folder.rename(tmp_path / "photos" / "train" / folder.name)
    person.call("stack", "up")
    for page in ("datasets", "inception", "infra"):
        follow(ROOT / page / "README.md", person, tmp_path)
