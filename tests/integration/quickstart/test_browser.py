"""What a person sees who opens a run in MLflow: a real browser on the real server.

Where RAYCEPTION_PICTURES names a folder, the screenshots are left there; README's is one of them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from orchestration.tracking.model import register_model
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.table_view import AS_TRAINING, table_page
from tests.integration.quickstart.conftest import Finished

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LIMIT_MS = 60_000  # two cores, and a page of several megabytes

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1360, "height": 900})
        opened.set_default_timeout(LIMIT_MS)
        expect.set_options(timeout=LIMIT_MS)
        yield opened
        browser.close()


def look(page: Page, finished: Finished, path: str) -> None:
    run = finished.outcome["run"]
    page.goto(f"{run['uri']}/#/experiments/{run['experiment_id']}{path}{AS_TRAINING}")


def close_assistant(page: Page) -> None:
    """A panel that MLflow opens by itself."""
    close = page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]')
    close.click()
    expect(close).to_have_count(0)


def keep(page: Page, name: str, folder: Path) -> None:
    target = Path(os.environ.get("RAYCEPTION_PICTURES", folder))
    target.mkdir(parents=True, exist_ok=True)
    picture = target / f"{name}.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000  # something is drawn


def test_an_experiment_its_run_and_its_charts(
    page: Page, finished: Finished, tmp_path: Path
) -> None:
    look(page, finished, "/runs")
    close_assistant(page)
    expect(page.get_by_text(finished.outcome["run_name"][:20]).first).to_be_visible()
    keep(page, "experiment", tmp_path)
    page.goto(finished.outcome["run"]["uri"] + table_page(finished.outcome["run"]["experiment_id"]))
    for column in ("val_ema/top1", "run/goodput"):  # of rayception's own view
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    expect(page.get_by_text(finished.outcome["run_name"]).first).to_be_visible()  # whole
    keep(page, "table", tmp_path)
    run_id = finished.outcome["run"]["run_id"]
    look(page, finished, f"/runs/{run_id}")
    expect(page.get_by_text("parameters at 75 px").first).to_be_visible()  # its description
    keep(page, "run", tmp_path)
    look(page, finished, f"/runs/{run_id}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("train/")
    expect(page.locator(".js-plotly-plot .scatterlayer path.js-line").nth(3)).to_be_attached()
    keep(page, "charts", tmp_path)
    look(page, finished, f"/runs/{run_id}/system-metrics")
    expect(page.get_by_text("cpu_utilization_percentage").first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer path.js-line").nth(2)).to_be_attached()
    keep(page, "system", tmp_path)


@pytest.mark.exhaustive
def test_its_confusion_matrix_and_its_model(page: Page, finished: Finished, tmp_path: Path) -> None:
    run_id = finished.outcome["run"]["run_id"]
    look(page, finished, f"/runs/{run_id}/artifacts/evaluation/confusion.html")
    inside = page.frame_locator("iframe")
    expect(inside.get_by_role("heading", name="Confusion matrix")).to_be_visible()
    inside.locator("#rows a").first.click()
    heading = "false negatives, by predicted class"
    expect(inside.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    keep(page, "confusion", tmp_path)
    run = finished.outcome["run"]
    top1 = finished.outcome["metrics"]["val_ema/top1"]
    uri = finished.outcome["model_uri"]
    register_model(RunRef(**run), uri, name="digits", top1=top1, scored_on="the held-out split")
    model = uri.removeprefix("models:/")
    look(page, finished, f"/models/{model}")
    registered = page.locator('a[href="#/models/digits/versions/1"]').first
    expect(registered).to_be_visible()
    expect(page.get_by_text("Ready", exact=True).first).to_be_visible()
    expect(page.get_by_test_id("logged-model-details-metrics-table")).to_be_visible()
    expect(page.get_by_text("does its own preprocessing").first).to_be_visible()
    keep(page, "model", tmp_path)
    registered.click()
    expect(page.get_by_text("champion").first).to_be_visible()
    keep(page, "registered", tmp_path)
