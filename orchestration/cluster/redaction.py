"""What of a checkout may be a secret: files by their names, and lines of a diff. Pure.

A diff is logged to MLflow, where others read it. What looks like a secret is shown as ***, in lines
that are added, removed or beside them; the head of the diff says how many, as it then no longer
applies as it is.
"""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath

HIDDEN = "***"
MAX_LINE_CHARS = 5_000  # of what is searched: nobody reads a longer line
# As in the templates of https://github.com/github/gitignore and the documentation of each program.
SECRET_FILES = (
    ".env*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials", "credentials.*",
    "*credentials.json", ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials",
    ".htpasswd", "kubeconfig", "secrets.*",
)  # fmt: skip
SECRET_FOLDERS = (".aws", ".ssh", ".kube", ".gnupg", ".docker")

NAME = r"(?:secret|passwo?r?d|passphrase|token(?!iz)|credential|(?:access|api|private)[_-]?key)"
KEY = rf"(?<![\w.-])[\"']?[\w.-]*{NAME}[\w.-]*[\"']?\s*(?::=|=>|[:=])\s*"
QUOTED = rf"(?i:{KEY})[rbfuRBFU]{{0,2}}(?P<quote>[\"'])(?P<quoted>.+?)(?P=quote)"
# Without quotes the value ends the line; in code it would be a name, not a value.
UNQUOTED = rf"(?i:{KEY})(?P<plain>[^\s\"'$<{{(\[#,;|>][^\s\"',;]{{2,}})\s*[,;]?\s*(?:#.*)?$"
KNOWN = (
    r"\b(?P<aws>(?:AKIA|ASIA)[0-9A-Z]{16})\b",
    r"\b(?P<prefixed>(?:gh[pousr]_|github_pat_|hf_|xox[abprs]-|sk-|glpat-)[\w-]{16,})",
    r"://[^/\s:@]*:(?P<url>[^/\s@]+)@",
    r"(?i:\bbearer\s+)(?P<bearer>[\w.~+/=-]{12,})",
)
CODE_SUFFIXES = (".py", ".pyi", ".c", ".h", ".cpp", ".js", ".ts", ".go", ".rs", ".java")
NO_SECRETS = {"none", "null", "true", "false", "str", "int", "bytes", "string", "required"}
BEGIN_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")
END_KEY = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY")
IN_CODE = [re.compile(pattern) for pattern in (*KNOWN, QUOTED)]
ELSEWHERE = [*IN_CODE, re.compile(UNQUOTED)]


def is_secret_file(path: str) -> bool:
    """Whether a file, by its path in the checkout, holds secrets by its name. Code does not."""
    *folders, name = PurePosixPath(path.lower()).parts
    if name.endswith(CODE_SUFFIXES) or name.endswith((".example", ".sample", ".template")):
        return False
    return any(fnmatch(name, pattern) for pattern in SECRET_FILES) or any(
        folder in SECRET_FOLDERS for folder in folders
    )


def redact_diff(diff: str, left_out: Sequence[str] = ()) -> str:
    """The diff without its secrets, under a head that names what it lacks, if anything.
    left_out: paths of files that it does not show."""
    lines = list(_redact_lines(diff.split("\n")))
    count = sum(shown != line for shown, line in zip(lines, diff.split("\n"), strict=True))
    head = [f"left out, as it may hold secrets: {path}" for path in left_out]
    if count:
        head.append(f"{count} lines show {HIDDEN} in place of what looks like a secret")
    return "\n".join([*head, *lines]) if diff or head else ""


def _redact_lines(lines: list[str]) -> Iterator[str]:
    in_hunk = in_key = False
    patterns = ELSEWHERE
    for line in lines:
        if line.startswith("diff --git "):
            in_hunk = in_key = False
            patterns = IN_CODE if line.rstrip('"').endswith(CODE_SUFFIXES) else ELSEWHERE
        elif line.startswith("@@ "):
            in_hunk, in_key = True, False
        if not in_hunk:
            yield line
        elif len(line) > MAX_LINE_CHARS:
            yield line[:1] + HIDDEN
        elif in_key or BEGIN_KEY.search(line):
            in_key = not END_KEY.search(line)
            yield line[:1] + HIDDEN
        else:
            yield _redact_line(line, patterns)


def _redact_line(line: str, patterns: list[re.Pattern[str]]) -> str:
    for pattern in patterns:
        line = pattern.sub(_hide, line)
    return line


def _hide(match: re.Match[str]) -> str:
    name = next(name for name in match.groupdict() if name != "quote")
    value = match[name]
    if value.lower() in NO_SECRETS or HIDDEN in value:
        return match[0]
    start, end = (at - match.start() for at in match.span(name))
    return match[0][:start] + HIDDEN + match[0][end:]
