"""What S3's and botocore's errors mean to a person: each with the remedy of its own cause.

Codes: the S3 API's list of error responses; the stores that are compatible with it use the same.
"""

from typing import Any

from datasets.errors import DataError, StoreBusyError, StoreError
from datasets.storage.proxy import through_proxy
from datasets.storage.transfer import changed_object

AWS = "https://s3.amazonaws.com"  # stands for AWS's many endpoints where a proxy is looked up
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
BUCKET_NAMES = "a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens"

# By error code: (rule, remedy).
REFUSALS = {
    "InvalidAccessKeyId": (
        "the store does not know this access key",
        f"Set {KEYS} to ones of this store; storage.endpoint_url says which store is asked.",
    ),
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the access key, or something between rewrites requests",
        "Correct AWS_SECRET_ACCESS_KEY.",
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock and the store's differ by more than 15 minutes",
        "Set this machine's clock (NTP).",
    ),
    "AccessDenied": (
        "these credentials may not do that",
        f"Ask for the permission, or set {KEYS} to ones that may use this bucket.",
    ),
    "InvalidBucketName": (BUCKET_NAMES, "Mend the URL."),
    "SlowDown": ("the store limits the rate of requests", "Start again when it is less busy."),
}
BUSY = (429, 500, 502, 503, 504)
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")
OTHER_REGION = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
FULL = ("QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "InsufficientStorage")


def refusal(url: str, service: str, error: Any, *, attempts: int) -> DataError | StoreError:
    """The error of a request that `service` answered with a refusal, botocore's ClientError."""
    answer = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    meta = answer.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    got = f"{url}: got {code or 'an error'} (HTTP {status}) from {service}"
    if code == "NoSuchBucket":
        bucket = url.removeprefix("s3://").partition("/")[0]
        return StoreError(
            f"{url}: got no bucket {bucket} at {service}; the bucket must exist. "
            "Create it, or mend the URL."
        )
    if code in ("NoSuchKey", "404") or status == 404:
        return DataError(f"{url}: got no such object; it must exist. Fix the URL.")
    if status in (412, 416):
        return changed_object(url, status)
    if code in EXPIRED:
        return StoreError(
            f"{got}; the credentials have expired. Get new ones (`aws sso login`, or a new "
            "AWS_SESSION_TOKEN with its keys)."
        )
    if code in OTHER_REGION or status == 301:
        region = meta.get("HTTPHeaders", {}).get("x-amz-bucket-region") or answer.get(
            "Error", {}
        ).get("Region")
        there = f"the bucket lies in {region}" if region else "the bucket lies in another region"
        return StoreError(
            f"{got}; {there}. Set storage.region to it, and storage.endpoint_url, if it is set, "
            "to the service there."
        )
    if code in FULL or status == 507:
        return StoreError(
            f"{got}; the store or the bucket's quota is full. Free some space, or raise the quota."
        )
    if code in REFUSALS and status < 500:
        rule, remedy = REFUSALS[code]
        return StoreError(f"{got}; {rule}. {remedy}")
    is_page = meta.get("HTTPHeaders", {}).get("content-type", "").startswith("text/html")
    if status in (401, 403) and not is_page:
        rule, remedy = REFUSALS["AccessDenied"]
        return StoreError(f"{got}{through_proxy(_asked(service))}; {rule}. {remedy}")
    if status == 407:
        return StoreError(
            f"{got}{through_proxy(_asked(service))}; the proxy asks for a login. Set it in the "
            "proxy's URL (http://USER:PASSWORD@HOST), or add the store's host to NO_PROXY."
        )
    if is_page:
        kind = StoreBusyError if status in BUSY else StoreError
        return kind(
            f"{url}: got a web page (HTTP {status}) from {service}{through_proxy(_asked(service))} "
            f"after {attempts} attempts; it failed, or it is not an S3 API but a console or a "
            "login page. Correct storage.endpoint_url, or look at its log."
        )
    if status in BUSY:
        return StoreBusyError(
            f"{got}{through_proxy(_asked(service))} after {attempts} attempts; the store failed. "
            "Look at its log and its disk space."
        )
    text = " ".join(str(answer.get("Error", {}).get("Message", "")).split())[:200]
    return StoreError(
        f"{got}: {text or 'no reason'}; the store refused the request. Check storage.endpoint_url "
        "and the URL."
    )


def endless_redirects(url: str, service: str) -> StoreError:
    """The error of a request that is sent on without an end."""
    return StoreError(
        f"{url}: got redirects without an end from {service}; the bucket is in another region, or "
        "a page stands in front of the service. Set storage.region and storage.endpoint_url to "
        "the bucket's."
    )


def no_response(url: str, service: str, error: Exception) -> StoreError:
    """The error of a request that has no answer from `service`, botocore's BotoCoreError."""
    name = type(error).__name__
    text = " ".join(str(error).split())[:200]
    if name == "ProfileNotFound":
        rule = "AWS_PROFILE must name a profile of ~/.aws/config or ~/.aws/credentials"
        return StoreError(f"{url}: got {text}; {rule}. Correct AWS_PROFILE, or unset it.")
    if name in ("ConfigParseError", "ConfigNotFound"):
        rule = "AWS's configuration must be readable"
        return StoreError(f"{url}: got {text}; {rule}. Mend the file, or set AWS_CONFIG_FILE.")
    if "SSO" in name or "Token" in name:
        return StoreError(
            f"{url}: got {text}; the profile logs in by SSO, and its session has expired or never "
            "began. Run `aws sso login`."
        )
    if name == "PartialCredentialsError":
        return StoreError(f"{url}: got {text}; credentials are a pair. Set {KEYS}.")
    if "Credential" in name:
        return StoreError(
            f"{url}: got no credentials ({name}); the store asks for them. Set {KEYS}, or "
            "storage.anonymous=true for a public bucket."
        )
    proxy = through_proxy(_asked(service))
    if name == "SSLError":
        return StoreError(
            f"{url}: got no trusted connection to {service}{proxy} ({text}); its certificate must "
            "be signed by an authority that this machine knows. Set AWS_CA_BUNDLE to the file of "
            "yours, or correct storage.endpoint_url."
        )
    if name == "ProxyConnectionError" or proxy:
        return StoreError(
            f"{url}: got no answer from {service}{proxy} ({name}); the store must be reachable. "
            "Check the proxy, or add the store's host to NO_PROXY."
        )
    if name == "ValueError":
        return StoreError(
            f"{url}: got {service}; an endpoint is the http(s) URL of an S3 API. Correct "
            "storage.endpoint_url."
        )
    if name == "ParamValidationError":
        return StoreError(
            f"{url}: got a URL that names no bucket or no object; s3://BUCKET/PATH, the bucket of "
            "lower-case letters, digits, dots and hyphens. Correct the URL."
        )
    return StoreError(
        f"{url}: got no answer from {service} ({name}); the store must be reachable. "
        "Check storage.endpoint_url and the network."
    )


def _asked(service: str) -> str:
    return service if "://" in service else AWS
