"""Public reports about configuration files, tried: what YAML 1.1 and OmegaConf do with what people
write. Every file is read as it is meant, or refused in one line with the remedy of its cause."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import from_dict, load_job, to_dict, to_yaml

SMALLEST = """
name: mine
data: {train: "s3://data/mine/train", val: "s3://data/mine/val"}
model: {num_classes: 10}
schedule: {epochs: 2}
"""
LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_job(path, overrides)


def refused(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert LAW.match(message), message
    return message


def value(job: Job, path: str) -> Any:
    found: Any = to_dict(job)
    for name in path.split("."):
        found = found[name]
    return found


# yaml/pyyaml#613 (yes, no, on, off), #395 and #272 (1:30), eemeli/yaml#205 (0755), #417 (695e0514).
AS_TEXT = ["on", "off", "yes", "no", "true", "0755", "007", "1:30", "1.10", "1e3", "695e0514"]


@pytest.mark.parametrize("text", AS_TEXT)
def test_text_that_yaml_takes_for_something_else_is_refused(tmp_path: Path, text: str) -> None:
    """yaml/pyyaml#417: a commit's name became infinity; an experiment `1.10` would become 1.1."""
    for section, override in (
        (f"tracking: {{experiment: {text}}}", f"tracking.experiment={text}"),
        (f"storage: {{region: {text}}}", f"storage.region={text}"),
        (f"cluster: {{environment: {{variables: {{A: {text}}}}}}}", ""),
        (f"cluster: {{environment: {{pip: [torch, {text}]}}}}", ""),
    ):
        message = refused(tmp_path, SMALLEST + section)
        assert f"got {text}, in YAML" in message
        assert "in quotes" in message
        if override:
            assert "in quotes" in refused(tmp_path, SMALLEST, override)
    quoted = load(tmp_path, SMALLEST + f'tracking: {{experiment: "{text}"}}')
    assert quoted.tracking.experiment == text


@pytest.mark.parametrize("text", [*AS_TEXT, "~", ".inf", "2026-01-02", "<<", "# x", "a: b", "0x1"])
def test_text_comes_back_from_the_yaml_that_we_write(tmp_path: Path, text: str) -> None:
    """yaml/pyyaml#860: text that looks like a number was written without quotes."""
    job = load(tmp_path, SMALLEST)
    environment = replace(job.cluster.environment, variables={"A": text}, pip=[text])
    cluster = replace(job.cluster, environment=environment)
    job = replace(job, cluster=cluster, tracking=replace(job.tracking, experiment=text))
    assert load(tmp_path, to_yaml(job)) == job
    assert from_dict(to_dict(job)) == job


@pytest.mark.parametrize("text", ["0755", "010", "1:30", "1:30:00", "+0_7"])
def test_numbers_to_another_base_are_refused(tmp_path: Path, text: str) -> None:
    """yaml/pyyaml#395: 1:10 is 70; eemeli/yaml#205: 0666 is 438 in YAML 1.1, 666 in 1.2."""
    base = "60" if ":" in text else "8"
    assert f"to the base of {base}" in refused(tmp_path, SMALLEST + f"cluster: {{wait_s: {text}}}")
    assert f"to the base of {base}" in refused(tmp_path, SMALLEST, f"seed={text}")
    assert "base of ten" in refused(tmp_path, SMALLEST + f"optim: {{lr: {text}}}")


@pytest.mark.parametrize(
    ("section", "path", "expected"),
    [
        ("optim: {lr: 1e-3}", "optim.lr", 0.001),  # yaml/pyyaml#173: was text
        ("optim: {lr: 1E5}", "optim.lr", 1e5),
        ("optim: {lr: '1e-3'}", "optim.lr", 0.001),
        ("optim: {lr: 3}", "optim.lr", 3.0),
        ("seed: 1_000", "seed", 1000),
        ("cluster: {use_spot: yes}", "cluster.use_spot", True),  # yaml/pyyaml#613
        ("cluster: {use_spot: off}", "cluster.use_spot", False),
        ("tracking: {experiment: 2026-01-02}", "tracking.experiment", "2026-01-02"),  # dates
        ("tracking: {experiment: 2026-13-45}", "tracking.experiment", "2026-13-45"),
        ("tracking: {experiment: 42}", "tracking.experiment", "42"),
        ("optim: {lr: &rate 0.5, eps: *rate}", "optim.eps", 0.5),  # omry/omegaconf#93
        ("optim: {<<: &a {lr: 0.5, eps: 2}, lr: 0.25}", "optim.lr", 0.25),  # omry/omegaconf#470
        ("optim: {<<: &a {lr: 0.5, eps: 2}, lr: 0.25}", "optim.eps", 2.0),
        ("optim: {<<: [{lr: 0.5}, {lr: 1, eps: 2}]}", "optim.lr", 0.5),
    ],
)  # fmt: skip
def test_what_is_meant_is_read(tmp_path: Path, section: str, path: str, expected: Any) -> None:
    """omry/omegaconf#446: a date is text. Others: the number at the case."""
    found = value(load(tmp_path, SMALLEST + section), path)
    assert found == expected
    assert type(found) is type(expected)


def test_merged_text_is_checked_too(tmp_path: Path) -> None:
    """omry/omegaconf#575 (merge keys)."""
    text = SMALLEST + "tracking: {<<: {experiment: 1.10}}"
    assert "in quotes" in refused(tmp_path, text)


@pytest.mark.parametrize("encode", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_files_of_other_systems_are_read(tmp_path: Path, encode: str, newline: str) -> None:
    """elastic/beats#2354, aaubry/YamlDotNet#324: a byte-order mark and CRLF of Windows."""
    text = SMALLEST.strip() + "\ntracking: {experiment: grün}\n# 花\n"
    job = load(tmp_path, text.replace("\n", newline).encode(encode))
    assert job.tracking.experiment == "grün"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    """YAML 1.2.2, section 5.2, has UTF-16 too; we ask for UTF-8."""
    text = SMALLEST + "tracking: {experiment: grün}\n"
    assert "Save it in that encoding" in refused(tmp_path, text.encode(encoding))


def test_the_locale_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's open() reads in the locale's encoding (PEP 597)."""
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    read_text = Path.read_text

    def read(self: Path, encoding: str | None = None, **options: Any) -> str:
        return read_text(self, encoding=encoding or "latin-1", **options)

    monkeypatch.setattr(Path, "read_text", read)
    assert load(tmp_path, SMALLEST + "tracking: {experiment: grün}").tracking.experiment == "grün"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALLEST + "name: other\n", "the key name again in line 6"),  # yaml/pyyaml#165
        (SMALLEST + "optim: {lr: 1, lr: 2}\n", "the key lr again"),
        (SMALLEST + "optim: {lr: 1}\nloss: {}\noptim: {eps: 2}\n", "the key optim again in line 8"),
        (SMALLEST + "optim:\n\tlr: 1\n", "got a tab in line 7"),  # YAML 1.2.2, section 6.1
        (SMALLEST + "optim:\n  lr:\t1\n", "Replace the tab by spaces"),
        (SMALLEST + "---\n" + SMALLEST, "a file holds one job"),  # YAML 1.2.2, section 9.2
        ("", "an empty file"),
        ("# nothing\n---\n", "an empty file"),
        # yaml/pyyaml#347: a tag that calls what it names.
        (SMALLEST + "optim: {lr: !!python/object/apply:os.abort []}\n", "nothing in it is"),
        (SMALLEST + "optim: {lr: !!python/name:os.abort ''}\n", "Remove the tag"),
        (SMALLEST + "optim: {lr: !mine 3}\n", "the tag !mine in line 6"),
        (SMALLEST + "seed: !!int abc\n", "a job is YAML"),
        (SMALLEST + "seed: !!timestamp abc\n", "a job is YAML"),
        (SMALLEST + f"seed: {'9' * 5000}\n", "a job is YAML"),
        (SMALLEST + "optim: {lr: *rate}\n", "undefined alias"),
        (SMALLEST + "optim: &o {lr: *o}\n", "recursive aliases"),  # omry/omegaconf#93
        (SMALLEST + "optim: " + "[" * 1500 + "]" * 1500, "too many levels"),
        # omry/omegaconf#598, #661: a circle of interpolations was a RecursionError.
        (SMALLEST + "optim: {lr: '${optim.lr}'}\n", "in a circle"),
        (SMALLEST + "optim: {lr: '${optim.eps}', eps: '${optim.lr}'}\n", "in a circle"),
        (SMALLEST + "optim: ${optim}\n", "in a circle"),
        (SMALLEST + "optim: {lr: '${optim}'}\n", "in a circle"),
        (SMALLEST + "inherits: ${inherits}\n", "in a circle"),
        (SMALLEST + "optim: {lr: '${optim.rate}'}\n", "by its whole path"),
        (SMALLEST + "optim: {lr: '${env:LR}'}\n", "a variable as ${oc.env:NAME}"),
        (SMALLEST + "tracking: {experiment: '${oc.env:NOT_SET}'}\n", "needs NAME"),
        (SMALLEST + "optim: {lr: .inf}\n", "finite numbers only"),
        (SMALLEST + "optim: {eps: .nan}\n", "finite numbers only"),
        (SMALLEST.replace("epochs: 2", "epochs: .inf"), "finite numbers only"),
        (SMALLEST + "cluster: {dollars_per_hour: {H100: .inf}}\n", "finite numbers only"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_remedy_of_its_cause(
    tmp_path: Path, text: str, expected: str
) -> None:
    """The report, or the section of YAML's specification, stands at the case."""
    assert expected in refused(tmp_path, text)


def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    """A billion nodes of nine aliases of aliases (https://en.wikipedia.org/wiki/Billion_laughs)."""
    lines = [
        "a0: &a0 [x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
    ]
    refused(tmp_path, SMALLEST + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "override", ["data.augment.aspect=[0.5,.inf]", "schedule.milestones=[.nan]"]
)
def test_numbers_in_lists_are_finite_too(tmp_path: Path, override: str) -> None:
    """YAML 1.1, https://yaml.org/type/float.html: `.inf` and `.nan` are numbers."""
    assert "finite numbers only" in refused(tmp_path, SMALLEST, override)
