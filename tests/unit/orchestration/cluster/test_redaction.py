"""No secret of the checkout is logged to MLflow (code.diff) or uploaded with a submission."""

import subprocess
from pathlib import Path

import pytest

from orchestration.cluster import working_dir
from orchestration.cluster.redaction import is_secret_file, redact_diff
from orchestration.cluster.working_dir import read_checkout, stage_working_dir
from orchestration.job.load import load_job

ROOT = Path(__file__).resolve().parents[4]
SECRET = "hunter2hunter2"  # in every line that must not show it
KEY = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        f"MIIE{SECRET}",
        f"{SECRET}==",
        "-----END RSA PRIVATE KEY-----",
    ]
)


def git(folder: Path, *arguments: str, text: str | None = None) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    done = subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a commit, in place of this one."""
    monkeypatch.setattr(working_dir, "ROOT", tmp_path)
    files = {
        ".env": "A=1\n",
        "deploy/server.pem": "old\n",
        "deploy/.aws/config": "old\n",
        "train.py": "lr = 0.1\n",
        "notes.txt": "one\ntwo\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".env.production", "prod.env", ".envrc", "a/b/server.pem", "tls.key", "id_rsa",
        "id_rsa.pub", "id_ed25519", "credentials", "credentials.json", "gcp-credentials.json",
        ".netrc", ".aws/config",
        "home/.AWS/credentials", ".ssh/known", ".pypirc", ".npmrc", ".kube/config", "secrets.yaml",
        "store.p12", ".git-credentials",
    ],
)  # fmt: skip
def test_files_with_secrets_by_their_names(path: str) -> None:
    assert is_secret_file(path)


@pytest.mark.parametrize(
    "path",
    [
        "train.py", "credentials.py", "secrets.py", "jobs/quickstart.yaml", ".env.example",
        ".gitignore",
        "environment.yaml", "keyboard.txt", "docs/tokens.md", "infra/Dockerfile", "pyproject.toml",
    ],
)  # fmt: skip
def test_other_files(path: str) -> None:
    assert not is_secret_file(path)


def test_nothing_of_this_checkout_is_a_secret_file() -> None:
    for name in git(ROOT, "ls-files").splitlines():
        assert not is_secret_file(name), name


def test_files_with_secrets_are_left_out_of_the_diff_and_named(checkout: Path) -> None:
    """mlflow/mlflow#7017 asks for a diff as an artifact; whoever sees the run reads it."""
    for name in (".env", "deploy/server.pem", "deploy/.aws/config"):
        (checkout / name).write_text(f"{SECRET}\n")
    (checkout / "notes.txt").write_text("one\nthree\n")
    checkout_now = read_checkout()
    assert SECRET not in checkout_now.diff
    for name in (".env", "deploy/server.pem", "deploy/.aws/config"):
        assert f"left out, as it may hold secrets: {name}\n" in checkout_now.diff
    assert "+three" in checkout_now.diff
    git(checkout, "checkout", "-q", ".")
    git(checkout, "apply", "-", text=checkout_now.diff)  # its head is no part of the patch
    assert (checkout / "notes.txt").read_text() == "one\nthree\n"


def test_a_secret_file_that_is_removed_or_renamed(checkout: Path) -> None:
    (checkout / ".env").write_text(f"A={SECRET}\n" * 20)
    git(checkout, "commit", "-qam", "second")
    git(checkout, "rm", "-q", ".env")
    assert SECRET not in read_checkout().diff
    git(checkout, "checkout", "-q", "HEAD", ".env")
    git(checkout, "mv", ".env", "settings.txt")
    diff = read_checkout().diff
    assert "left out, as it may hold secrets: .env" in diff


def test_only_secret_files_changed(checkout: Path) -> None:
    (checkout / ".env").write_text(f"A={SECRET}\n")
    assert read_checkout().diff == "left out, as it may hold secrets: .env\n"


def test_settings_of_git_do_not_matter(checkout: Path) -> None:
    """wandb/wandb#3862 is another diff that held what nobody expected."""
    for setting in ("color.ui=always", "diff.external=/bin/false", "diff.noprefix=false"):
        git(checkout, "config", *setting.split("="))
    (checkout / "notes.txt").write_text(f"one\npassword: {SECRET}\n")
    diff = read_checkout().diff
    assert "\x1b" not in diff
    assert "+password: ***\n" in diff
    assert SECRET not in diff


LINES = [
    f"AWS_SECRET_ACCESS_KEY: {SECRET}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"export MLFLOW_TRACKING_PASSWORD='{SECRET}'",
    f"password={SECRET}",
    f"  token: {SECRET}  # of the team",
    f'"api_key": "{SECRET}",',
    f"db.passwd = {SECRET}",
    f"client-secret: '{SECRET}'",
    f"private_key => {SECRET}",
    f"- name: AWS_SESSION_TOKEN={SECRET}",
    "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
    "whatever AKIAIOSFODNN7EXAMPLE here",
    f"url: https://user:{SECRET}@example.org/x",
    f"Authorization: Bearer {SECRET}",
    f"ghp_{SECRET}0123456789",
    f"hf_{SECRET}0123456789",
]


@pytest.mark.parametrize("sign", ["+", "-", " "])
@pytest.mark.parametrize("line", LINES)
def test_lines_with_secrets(line: str, sign: str) -> None:
    """zenml-io/zenml#2443, ecmwf/WeatherGenerator#197: credentials in what a run logs."""
    diff = f"diff --git a/x.yaml b/x.yaml\n--- a/x.yaml\n+++ b/x.yaml\n@@ -1 +1 @@\n{sign}{line}\n"
    shown = redact_diff(diff)
    assert SECRET not in shown
    assert "AKIAIOSFODNN7EXAMPLE" not in shown
    assert "***" in shown.split("\n")[-2]
    assert shown.startswith("1 lines show ***")
    assert shown.count("\n") == diff.count("\n") + 1


def test_code_that_handles_secrets_is_no_secret() -> None:
    code = [
        "def login(password: str, token: bytes | None = None) -> None:",
        "    client(password=password, token=self.token, api_key=os.environ['API_KEY'])",
        "SECRET_PATTERN = re.compile(r'SECRET|TOKEN')",
        "secrets = job.cluster.secrets",
        "num_tokens = 512",
        "tokenizer = 'bert-base-uncased'",
    ]
    yaml = ["cluster: {secrets: [AWS_SECRET_ACCESS_KEY]}", "password: ${PASSWORD}", "token: null"]
    for name, lines in (("x.py", code), ("x.yaml", yaml)):
        hunk = "\n".join(f"+{line}" for line in lines)
        diff = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -0,0 +1 @@\n{hunk}\n"
        assert redact_diff(diff) == diff
    literal = f'diff --git a/x.py b/x.py\n@@ -0,0 +1 @@\n+client(password="{SECRET}", port=1)\n'
    assert '+client(password="***", port=1)\n' in redact_diff(literal)


def test_a_private_key_in_any_file(checkout: Path) -> None:
    (checkout / "notes.txt").write_text(f"one\n{KEY}\ntwo\n-- password: {SECRET}\n")
    diff = read_checkout().diff
    assert SECRET not in diff
    assert "BEGIN" not in diff
    assert diff.count("+***\n") == 4
    git(checkout, "commit", "-qam", "oh")
    (checkout / "notes.txt").write_text("one\ntwo\n")
    assert SECRET not in read_checkout().diff  # lines that begin with --- too


def test_values_of_secret_variables_are_hidden(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "correct-horse")
    (checkout / "train.py").write_text("x = 'correct-horse'\n")
    assert "correct-horse" not in read_checkout().diff


def test_a_submission_uploads_no_file_with_secrets(checkout: Path) -> None:
    """ray-project/ray#53648, #33149: what .gitignore does not name is in a working directory."""
    (checkout / "new.key").write_text(SECRET)
    (checkout / "prod.env").write_text(SECRET)
    (checkout / "notes.txt").write_text(f"password={SECRET}\n")
    git(checkout, "checkout", "-q", "notes.txt")
    (checkout / "train.py").write_text(f"lr = 1\npassword = '{SECRET}'\n")
    with stage_working_dir({"job.yaml": load_job(ROOT / "jobs" / "quickstart.yaml")}) as folder:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        assert {"train.py", "notes.txt"} <= names
        assert (
            not {".env", "prod.env", "new.key", "deploy/server.pem", "deploy/.aws/config"} & names
        )
        assert SECRET not in (folder / "submitted-checkout.json").read_text()


def test_a_long_line_holds_up_nobody() -> None:
    """A minified file, or data in hexadecimal: hidden as a whole, not searched."""
    lines = ["diff --git a/x.json b/x.json", "@@ -1 +1 @@", "+" + "ab-" * 150_000, "+a: b"]
    assert redact_diff("\n".join(lines)).endswith("\n+***\n+a: b")
