"""What the documentation says: links resolve, commands exist, tables are those of the code."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestration.cli.app import app
from tests.fields import README, with_tables

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True
).stdout.split()
PAGES = [ROOT / name for name in TRACKED]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```console([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def console_blocks(page: Path) -> list[tuple[bool, str]]:
    """(whether it runs here, its commands) of each console block; `not-run` marks the others."""
    return [
        ("not-run" not in mark, commands_of(text)) for mark, text in BLOCK.findall(page.read_text())
    ]


def commands_of(text: str) -> str:
    """The lines after `$ ` and `> `, as one script."""
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith(("$ ", "> ")))


@pytest.mark.parametrize("page", PAGES, ids=TRACKED)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_named_tests_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    assert len(named) > 10
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in sources} == set()


@pytest.mark.parametrize("page", PAGES, ids=TRACKED)
def test_commands_exist_with_their_options(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for _, script in console_blocks(page):
        for line in script.splitlines():
            for target in re.findall(r"^make (\S+)", line):
                assert f"\n{target}:" in (ROOT / "Makefile").read_text(), line
            for called in re.findall(r"(?:^|; )rayception ([^;#]*)", line):
                words = shlex.split(called)
                command, arguments = group.commands[words[0]], words[1:]
                if hasattr(command, "commands"):
                    command = command.commands[arguments.pop(0)]
                command.make_context("rayception", arguments)


def test_the_table_of_fields_is_that_of_the_code() -> None:
    """`python -m tests.fields` writes it."""
    assert README.read_text() == with_tables(README.read_text())
    assert not re.findall(r"^\| `.*\|  \|$", README.read_text(), re.MULTILINE)  # no text


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
