"""What a person sees who opens a run in MLflow: a real browser on the real server.

Where RAYCEPTION_PICTURES names a folder, the screenshots are left there; README's is one of them.
"""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from orchestration.tracking.model import register_model
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.table_view import AS_TRAINING, table_page
from tests.integration.conftest import RAYCEPTION, ROOT
from tests.integration.quickstart.conftest import Finished
from tests.integration.quickstart.test_trained import client
from tests.waiting import BUSY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LIMIT_MS = 60_000  # two cores, and a page of several megabytes

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page(finished: Finished) -> Iterator[Page]:
    """Logged in as `rayception ui` does it: it writes a page that only this user reads, and opens
    that. (BROWSER is Python's variable for the program that does.)"""
    home = finished.home
    done = subprocess.run(
        [RAYCEPTION, "ui", finished.outcome["run"]["run_id"]], cwd=ROOT, capture_output=True,
        env=home.environment | {"BROWSER": "true"}, text=True, timeout=60 * BUSY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    handed_over = home.folder / "mlflow" / "open.html"
    assert handed_over.stat().st_mode & 0o777 == 0o600
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_context(viewport={"width": 1360, "height": 900}).new_page()
        opened.set_default_timeout(LIMIT_MS)
        expect.set_options(timeout=LIMIT_MS)
        response = opened.goto(finished.outcome["run"]["uri"])
        assert response is not None
        assert response.status == 401
        expect(opened.get_by_text("rayception ui")).to_be_visible()
        opened.goto(handed_over.as_uri())
        uri = finished.outcome["run"]["uri"]
        page = f"/runs/{finished.outcome['run']['run_id']}/"
        opened.wait_for_url(lambda url: url.startswith(f"{uri}/#/") and page in url)
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


# What a page of another origin can try: requests that need no leave, a form, and to read an answer.
ATTACK = """<!DOCTYPE html><title>harmless</title><iframe name="inside"></iframe>
<form method="post" enctype="text/plain" target="inside"
 action="%s/api/2.0/mlflow/experiments/create">
<input name='{"name": "by a form", "x": "' value='"}'></form>
<script>
const said = [];
async function attack(url, method, body) {
  for (const mode of ["no-cors", "cors"]) {
    try {
      const answer = await fetch(url, {method, body, mode, credentials: "include"});
      said.push(url + " " + answer.type + " " + (await answer.text()).slice(0, 40));
    } catch (error) { said.push(url + " refused"); }
  }
}
window.attacked = (async () => {
  document.forms[0].submit();
  const create = '{"name": "by a page"}';
  for (const host of %s) {
    await attack(host + "/api/2.0/mlflow/experiments/create", "POST", create);
    await attack(host + "/ajax-api/2.0/mlflow/experiments/create", "POST", create);
    await attack(host + "/ajax-api/2.0/mlflow/experiments/search?max_results=5", "GET");
    await attack(host + "/data?list-type=2", "GET");
    await attack(host + "/api/jobs/", "POST", '{"entrypoint": "id"}');
    await attack(host + "/rayception-login", "POST", "1.2");
  }
  await new Promise(done => setTimeout(done, 500));
  return said;
})();
</script>"""


@contextlib.contextmanager
def another_origin(text: str) -> Iterator[int]:
    """The port of a server of this machine with one page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_page_of_another_origin_gets_and_changes_nothing(page: Page, finished: Finished) -> None:
    """In the very browser that is logged in; from another port, and from a name that leads to this
    machine (DNS rebinding: what the browser then sends has that name)."""
    ports = finished.home.state["ports"]
    hosts = [f"http://{name}:{ports[part]}" for part in ("mlflow", "s3", "dashboard")
             for name in ("127.0.0.1", "localhost")]  # fmt: skip
    known = {one.name for one in client(finished.home).search_experiments()}
    with another_origin(ATTACK % (hosts[0], hosts)) as port:
        for name in ("127.0.0.1", "rebound.localhost"):
            other = page.context.new_page()
            other.goto(f"http://{name}:{port}/")
            said = other.evaluate("window.attacked")
            other.close()
            assert len(said) == 12 * len(hosts), said
            assert all(one.endswith(("refused", "opaque ")) for one in said), said
    rebound = page.context.new_page()
    for part, path in (("mlflow", ""), ("s3", "data?list-type=2"), ("dashboard", "api/jobs/")):
        response = rebound.goto(f"http://rebound.localhost:{ports[part]}/{path}")
        assert response is not None
        assert response.status in (401, 403), part
    rebound.close()
    assert {one.name for one in client(finished.home).search_experiments()} == known


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
