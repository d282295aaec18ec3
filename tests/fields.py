"""The fields of a job as Markdown tables, from the dataclasses' source: `python -m tests.fields`
writes them into jobs/README.md, and tests/test_docs.py holds them there."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "jobs" / "README.md"
BEGIN, END = "<!-- fields: begin -->", "<!-- fields: end -->"
JOB = ("orchestration/job/job.py", "Job")
SECTIONS = {
    "data": ("orchestration/job/data.py", "Data"),
    "data.shuffle": ("orchestration/job/data.py", "Shuffle"),
    "data.augment": ("orchestration/job/data.py", "Augmentation"),
    "model": ("orchestration/job/recipe.py", "Model"),
    "model.options": ("inception/options.py", "Options"),
    "loss": ("orchestration/job/recipe.py", "Loss"),
    "optim": ("orchestration/job/recipe.py", "Optim"),
    "schedule": ("orchestration/job/recipe.py", "Schedule"),
    "cluster": ("orchestration/job/cluster.py", "Cluster"),
    "cluster.environment": ("orchestration/job/cluster.py", "Environment"),
    "storage": ("orchestration/job/cluster.py", "Storage"),
    "checkpoint": ("orchestration/job/cluster.py", "CheckpointPolicy"),
    "tracking": ("orchestration/job/cluster.py", "Tracking"),
}


def tables() -> str:
    """Every field with its default and the comment above it."""
    parts = [_table("", *JOB), *(_table(name, *place) for name, place in SECTIONS.items())]
    return "\n\n".join(parts)


def with_tables(readme: str) -> str:
    """The file's text with the tables of now between their marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _table(section: str, file: str, name: str) -> str:
    source = (ROOT / file).read_text()
    lines = source.splitlines()
    constants = _constants(ast.parse(source))
    [found] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for node in found.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        field = ast.unparse(node.target)
        path = f"{section}.{field}" if section else field
        if path in SECTIONS:
            rows.append(f"| `{path}` | | see below |")
            continue
        text = _comment_above(lines, node.lineno - 1).replace("|", "\\|")
        rows.append(f"| `{path}` | {_default(node, constants)} | {text} |")
    return "\n".join(rows)


def _constants(module: ast.Module) -> dict[str, ast.expr]:
    """Module constants by name: defaults may name one."""
    return {
        node.targets[0].id: node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _comment_above(lines: list[str], at: int) -> str:
    comment: list[str] = []
    while lines[at - 1].strip().startswith("#"):
        at -= 1
        comment.insert(0, lines[at].strip().removeprefix("#").strip())
    return " ".join(comment)


def _default(node: ast.AnnAssign, constants: dict[str, ast.expr]) -> str:
    value = node.value
    if isinstance(value, ast.Call):  # field(...)
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        if factory := arguments.get("default_factory"):
            return {"list": "`[]`", "dict": "`{}`"}.get(ast.unparse(factory), "")
        value = arguments.get("default")
    if value is None:
        return "required"
    if isinstance(value, ast.Name):
        value = constants.get(value.id, value)
    text = ast.unparse(value)
    plain = {"None": "", "True": "`true`", "False": "`false`"}
    return plain.get(text, f"`{text.strip(chr(39))}`")


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
