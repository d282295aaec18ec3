"""A store's refusals and a broken configuration of AWS's: one line with the remedy of its cause.

The answers are those of the S3 API, from a server of this test: SeaweedFS cannot be made to give
them all.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage import s3
from datasets.storage.store import Store, StoreConfig
from tests.unit.datasets.answers import Answers, answering

LAW = re.compile(r"^.+?: got .+; .+\. .+\.$")
SECRET = "hunter2-secret-key"


class Page:
    """A server whose every answer is the one set."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""
        self.server = Answers("")

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def requests(self) -> int:
        return len(self.server.asked)


@pytest.fixture
def answers() -> Iterator[Page]:
    page = Page()
    with answering(lambda _: (page.status, page.headers, page.body)) as page.server:
        yield page


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)


def store(url: str | None) -> Store:
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "InvalidAccessKeyId", "does not know this access key"),
        (403, "SignatureDoesNotMatch", "Correct AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "AccessDenied", "Ask for the permission"),
        (400, "ExpiredToken", "have expired.*aws sso login"),
        (301, "PermanentRedirect", "lies in eu-west-1. Set storage.region"),
        (400, "AuthorizationHeaderMalformed", "lies in eu-west-1. Set storage.region"),
        (400, "InvalidBucketName", "Mend the URL"),
        (403, "QuotaExceeded", "quota is full"),
        (507, "XMinioStorageFull", "quota is full"),
        (404, "NoSuchBucket", "Create it"),
        (400, "SomethingNew", "because it is Monday"),
    ],
)
def test_a_refusal_is_said_with_its_remedy(
    answers: Page, status: int, code: str, remedy: str
) -> None:
    answers.status = status
    answers.headers = {"x-amz-bucket-region": "eu-west-1"}
    answers.body = (
        f'<?xml version="1.0"?><Error><Code>{code}</Code>'
        "<Message>because it is Monday</Message></Error>"
    ).encode()
    with pytest.raises((StoreError, DataError), match=remedy) as caught:
        store(answers.url).read("s3://bucket/key")
    assert LAW.match(str(caught.value)), str(caught.value)
    assert not isinstance(caught.value, StoreBusyError)
    assert SECRET not in str(caught.value)


def test_a_web_page_instead_of_an_api_is_said(answers: Page) -> None:
    """The address of a store's console, or a login page before it."""
    answers.body = b"<!DOCTYPE html><html><body>Log in<br></body></html>"
    answers.headers = {"Content-Type": "text/html"}
    with pytest.raises(StoreError, match=r"web page.*Correct storage\.endpoint_url") as caught:
        store(answers.url).stat("s3://bucket/key")
    assert LAW.match(str(caught.value))


CASES: list[tuple[dict[str, str], str, str]] = [
    ({"AWS_PROFILE": "nobody"}, "", r"nobody.*Correct AWS_PROFILE"),
    ({}, "[default\nregion=", r"config.*Mend the file"),
    ({"AWS_PROFILE": "team"}, "[profile team]\nsso_session = s\nsso_account_id = 1\n"
     "sso_role_name = r\n[sso-session s]\nsso_region = us-east-1\n"
     "sso_start_url = https://sso.invalid/start\n", "aws sso login"),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "config", "remedy"), CASES)
def test_a_broken_configuration_is_said(
    variables: dict[str, str], config: str, remedy: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, answers: Page,
) -> None:  # fmt: skip
    (tmp_path / "config").write_text(config)
    if "sso" in config:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=remedy) as caught:
        store(answers.url).read("s3://bucket/key")
    assert LAW.match(str(caught.value)), str(caught.value)
    assert answers.requests == 0


@pytest.mark.parametrize("url", ["not a url", "localhost:9000", "http://"])
def test_an_endpoint_that_is_none_is_said(url: str) -> None:
    with pytest.raises(StoreError, match=r"storage\.endpoint_url") as caught:
        store(url).read("s3://bucket/key")
    assert LAW.match(str(caught.value)), str(caught.value)


def test_a_bucket_that_can_have_no_such_name_is_said(answers: Page) -> None:
    problems: list[Any] = []
    for url in ("s3://a b/key", "s3:///key"):
        with pytest.raises((StoreError, DataError), match="Correct the URL") as caught:
            store(answers.url).read(url)
        problems.append(caught.value)
    assert all(LAW.match(str(problem)) for problem in problems), problems
