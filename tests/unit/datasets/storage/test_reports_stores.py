"""Public reports about object stores, tried: on a real SeaweedFS, and on a server that answers as
other stores, and pages in front of them, do."""

from pathlib import Path

import boto3
import pytest

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage import s3 as s3_module
from datasets.storage.store import Store, StoreConfig
from tests.unit.datasets.answers import (
    EMPTY_LIST,
    Answer,
    Asked,
    answering,
    private_authority,
    refusal,
)

OBJECT = b"0123456789"
KEY = "s3://bucket/a/key"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the answering server; the fixture s3 sets its own after it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def store_at(url: str) -> Store:
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


def found(content: bytes = OBJECT, status: int = 200, **headers: str) -> Answer:
    return status, {"ETag": '"e"', **headers}, content


def given(asked: Asked) -> Answer:
    """The object, or that it is stored."""
    return found(b"" if asked.method == "PUT" else OBJECT)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    "name",
    [
        "two words.tar", "a+b.tar", "100%.tar", "50%25.tar", "grün 花 🌸.tar", "a&b=c;d.tar",
        "a#b.tar", "what?.tar", "a:b@c.tar", "(1) [2] {3}.tar", "~tilde'quote\".tar",
        "e=1/date=2026-01-02.tar",
    ],
)  # fmt: skip
def test_keys_with_odd_characters(s3: Store, name: str) -> None:
    """minio/minio#6706, generalui/s3p#53: keys with a space, + or % were not found or listed under
    another name."""
    url = f"s3://data/odd/{name}"
    s3.write(url, OBJECT)
    assert s3.read(url) == OBJECT
    assert bytes(s3.read_range(url, 3, 4)) == b"3456"
    assert s3.exists(url)
    assert [entry.url for entry in s3.list(url)] == [url]
    assert url in [entry.url for entry in s3.list("s3://data/odd/")]
    assert s3.stat(url).size_bytes == len(OBJECT)
    s3.delete(url)
    assert not s3.exists(url)


def test_an_endpoint_with_a_path() -> None:
    """ujeenet/rustango#1289 (Supabase): the endpoint's path was left out, or put into Host."""

    def answer(asked: Asked) -> Answer:
        return (200, {}, EMPTY_LIST) if "list-type" in asked.path else given(asked)

    with answering(answer) as server:
        store = store_at(f"{server.url}/storage/v1/s3")
        assert store.read(KEY) == OBJECT
        assert store.list("s3://bucket/a/") == []
        store.write(KEY, OBJECT)
    paths = [asked.path.partition("?")[0] for asked in server.asked]
    assert paths == [f"/storage/v1/s3/bucket{path}" for path in ("/a/key", "", "/a/key")]
    assert {asked.headers["Host"] for asked in server.asked} == {server.url.partition("//")[2]}


def test_a_private_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec/s3fs#342, datachain-ai/datachain#929: a store with a certificate of a private
    authority; AWS_CA_BUNDLE is for s3://, OpenSSL's SSL_CERT_FILE for https://."""
    authority, tls = private_authority(tmp_path)
    with answering(lambda _: found(), tls) as server:
        for url in (KEY, f"{server.url}/key"):
            monkeypatch.setattr("datasets.storage.http.ATTEMPTS", 0)
            with pytest.raises(StoreError) as caught:
                store_at(server.url).read(url)
            assert "127.0.0.1" in one_line(caught.value)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert store_at(server.url).read(KEY) == OBJECT
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert Store().read(f"{server.url}/key") == OBJECT


@pytest.mark.parametrize(
    ("answer", "region"),
    [
        (refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-central-1"), "eu-central-1"),
        (refusal(301, "PermanentRedirect"), "another region"),
        (refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), "eu-west-3"),
        (refusal(400, "IllegalLocationConstraintException"), "another region"),
    ],
)
def test_a_bucket_in_another_region(answer: Answer, region: str) -> None:
    """boto/boto3#4360, aws/aws-cli#851: the answer did not say which region."""
    with answering(lambda _: answer) as server:
        for work in (Store.read, Store.list):
            with pytest.raises(StoreError, match=r"storage\.region") as caught:
                work(store_at(server.url), KEY)
            assert region in one_line(caught.value)
    assert len(server.asked) < 200  # botocore asks where; the last one has no end by itself


def test_a_token_that_expires_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Netflix/metaflow#486, boto/boto3#1073, fsspec/s3fs#500: a process beside the run renews the
    file of credentials, but the client kept the first ones."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    is_valid = {"first": True}

    def login(key: str) -> None:
        file.write_text(
            f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\naws_session_token=t\n"
        )

    def answer(asked: Asked) -> Answer:
        key = asked.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        if not is_valid.get(key, False):
            return refusal(400, "ExpiredToken")
        return found(b"0123", 206, **{"Content-Range": "bytes 0-3/10"})

    with answering(answer) as server:
        store = store_at(server.url)
        login("first")
        assert bytes(store.read_range(KEY, 0, 4)) == b"0123"
        is_valid |= {"first": False, "second": True}
        login("second")
        assert bytes(store.read_range(KEY, 0, 4)) == b"0123"
        is_valid["second"] = False
        server.asked.clear()
        with pytest.raises(StoreError, match="ExpiredToken"):  # renewed by nobody
            store.read_range(KEY, 0, 4)
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),  # mosaicml/streaming#310
        (403, "RequestTimeTooSkewed"),  # boto/boto3#1252
        (403, "SignatureDoesNotMatch"),  # jschneier/django-storages#616
        (400, "XAmzContentSHA256Mismatch"),  # langgenius/dify#13354
        (411, "MissingContentLength"),  # boto/boto3#4398
        (501, "NotImplemented"),
    ],
)
def test_a_refusal_that_stays_ends_at_once(status: int, code: str) -> None:
    """The report stands at the case: asked again for an hour, the store would say the same."""
    with answering(lambda _: refusal(status, code)) as server:
        store = store_at(server.url)
        for work in (store.read, store.list, lambda url: store.write(url, OBJECT)):
            server.asked.clear()
            with pytest.raises(StoreError, match=code) as caught:
                work(KEY)
            assert not isinstance(caught.value, StoreBusyError)
            one_line(caught.value)
            assert len(server.asked) == 1


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("answer", [refusal(503, "SlowDown"), refusal(429, "TooManyRequests")])
def test_an_overloaded_store_is_asked_again_but_not_for_ever(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ray-project/ray#36690, huggingface/datatrove#302; test_faults.py has bursts of 503."""
    monkeypatch.setattr(s3_module, "ATTEMPTS", 1)  # botocore's own take seconds
    answers = [answer, answer, answer]
    with answering(lambda _: answers.pop() if answers else found()) as server:
        assert store_at(server.url).read(KEY) == OBJECT
    with answering(lambda _: answer) as server:
        with pytest.raises(StoreBusyError):
            store_at(server.url).read(KEY)
        assert 3 < len(server.asked) <= 12


def test_a_versioned_bucket(s3: Store, s3_url: str) -> None:
    """minio/minio#21366, distribution/distribution#1049: what is deleted leaves a marker and older
    versions, which are neither listed nor read."""
    client = boto3.client("s3", endpoint_url=s3_url, region_name="us-east-1")
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    url = "s3://versioned/shards/a.tar"
    s3.write(url, b"first")
    etag = s3.stat(url).etag
    s3.write(url, b"other")
    assert [entry.url for entry in s3.list("s3://versioned/shards/")] == [url]
    assert s3.read(url) == b"other"
    with pytest.raises(DataError, match="another ETag"):
        s3.read_range(url, 0, 5, etag)
    s3.delete(url)
    assert not s3.exists(url)
    assert s3.list("s3://versioned/") == []
    with pytest.raises(DataError, match="got no such object"):
        s3.read(url)
    s3.write(url, b"again")
    assert s3.read(url) == b"again"


@pytest.mark.parametrize("asked_for", ["", "when_supported"])
def test_no_checksum_header_that_older_stores_refuse(
    asked_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto/boto3#4392, boto/botocore#3352, boto/boto3#4435: since 1.36 botocore adds checksums to a
    body, which some stores refuse and one stored as part of the object."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, asked_for) if asked_for else monkeypatch.delenv(name, False)
    with answering(given) as server:
        store = store_at(server.url)
        store.write(KEY, OBJECT)
        store.read(KEY)
    for asked in server.asked:
        names = {name.lower() for name in asked.headers}
        assert not [name for name in names if "checksum" in name or "trailer" in name]
        assert "aws-chunked" not in asked.headers.get("Content-Encoding", "")
    assert server.asked[0].headers["Content-Length"] == str(len(OBJECT))


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (found(OBJECT), 3),  # apache/arrow-rs#4841
        (found(OBJECT), 10),  # the whole object is as long as the part
        (found(OBJECT[:3], 206, **{"Content-Range": "bytes 0-2/10"}), 3),
        (found(OBJECT[:3], 206), 3),
    ],
)
def test_a_store_that_ignores_ranges(scheme: str, answer: Answer, length: int) -> None:
    """apache/arrow-rs#4841, phiresky/sql.js-httpvfs#52: the bytes of another place, unnoticed."""
    with answering(lambda _: answer) as server:
        url = KEY if scheme == "s3" else f"{server.url}/key"
        with pytest.raises(StoreError, match="must answer a byte range with 206") as caught:
            store_at(server.url).read_range(url, 5, length)
        one_line(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_range_that_is_the_whole_object_may_be_answered_with_200(scheme: str) -> None:
    """apache/arrow-rs-object-store#806, chimera-nas/chimera#1194."""
    with answering(lambda _: found()) as server:
        url = KEY if scheme == "s3" else f"{server.url}/key"
        assert bytes(store_at(server.url).read_range(url, 0, 10)) == OBJECT


LOGIN = (200, {"Content-Type": "text/html"}, b"<html><body>Please log in</body></html>")


@pytest.mark.parametrize("status", [200, 302, 307])
def test_a_login_page_is_no_store(status: int) -> None:
    """S3's API reference: a PUT is answered with an ETag, a list with IsTruncated. A page that says
    200 to everything would have taken each checkpoint, and listed an empty bucket."""

    def answer(asked: Asked) -> Answer:
        return LOGIN if status == 200 else (status, {"Location": f"{server.url}/login"}, b"")

    with answering(answer) as server:
        store = store_at(server.url)
        for work in (store.read, store.list, store.exists, lambda url: store.write(url, OBJECT)):
            with pytest.raises(StoreError, match=r"storage\.endpoint_url") as caught:
                work(KEY)
            one_line(caught.value)


def test_a_web_server_that_states_no_length() -> None:
    """RFC 9112, section 7.1: a chunked answer has no Content-Length."""
    chunked = (200, {"Transfer-Encoding": "chunked"}, b"a\r\n0123456789\r\n0\r\n\r\n")
    with (
        answering(lambda _: chunked) as server,
        pytest.raises(StoreError, match="without Content-Length"),
    ):
        Store().read(f"{server.url}/index.json")


@pytest.mark.parametrize(
    ("endpoint", "url", "expected"),
    [
        ("nohost", KEY, r"Correct storage\.endpoint_url"),
        ("http://", KEY, r"Correct storage\.endpoint_url"),
        ("https://user:hunter2@127.0.0.1:9", KEY, "https://127.0.0.1:9"),
        ("http://127.0.0.1:9", "s3://bucket", "names no bucket or no object"),
        ("http://127.0.0.1:9", "s3://bucket/", "names no bucket or no object"),
        ("http://127.0.0.1:9", "s3://my bucket/x", "names no bucket or no object"),
    ],
)
def test_a_wrong_url_is_named(endpoint: str, url: str, expected: str) -> None:
    """botocore raises ValueError, ParamValidationError (its documentation, "Error handling")."""
    with pytest.raises(StoreError, match=expected) as caught:
        store_at(endpoint).read(url)
    assert "hunter2" not in one_line(caught.value)
