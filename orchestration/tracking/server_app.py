"""The embedded MLflow server's application: MLflow's own, behind the stack's token.

Another user of this machine reaches loopback too, and whoever writes an artifact of a logged model
runs code where it is loaded. Programs send the token, as a password or as Bearer. A browser gets it
from a page that `rayception ui` opens with a ticket, and then sends it by HTTP Basic, which it
keeps for this very port (cookies go to every port of a host). Requests that a page of another
origin makes are refused, whatever they carry.

`mlflow server --app-name` finds it by the entry point in pyproject.toml.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from orchestration.stack.services import TOKEN_VARIABLE
from orchestration.tracking.credentials import USER

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

TICKET_LIFE_S = 600
LOGIN_PATH = "/rayception-login"
MAX_TICKET_BYTES = 200
LOGIN_PAGE = (Path(__file__).parent / "login.html").read_bytes()
NEEDS_LOGIN = (
    b"<!DOCTYPE html><title>MLflow</title><p>This MLflow belongs to whoever started it. "
    b"Open it with <code>rayception ui</code>.</p>"
)


def create() -> App:
    """The application. The token is in the environment: arguments are seen by every user."""
    from mlflow.server.fastapi_app import app

    return guard(app, os.environ[TOKEN_VARIABLE])


def guard(app: App, token: str) -> App:
    """`app`, for requests with the token alone; its /health for everyone."""

    async def guarded(scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") == "/health":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":  # MLflow needs no websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        method = scope["method"]
        if scope.get("path") == LOGIN_PATH and method == "GET":
            await _answer(send, 200, LOGIN_PAGE)
        elif not is_same_origin(method, headers):
            await _answer(send, 403, b"a page of another origin may not ask this server")
        elif scope.get("path") == LOGIN_PATH:
            body = (await receive()).get("body", b"")[:MAX_TICKET_BYTES]
            if is_valid(token, body.decode(errors="replace"), time.time()):
                await _answer(send, 200, json.dumps([USER, token]).encode(), "application/json")
            else:
                await _answer(send, 403, b"the ticket is no longer valid")
        elif is_allowed(token, headers.get("authorization", "")):
            await app(scope, receive, send)
        elif headers.get("sec-fetch-mode") == "navigate":
            await _answer(send, 401, NEEDS_LOGIN)
        else:
            await _answer(send, 401, NEEDS_LOGIN, challenge=True)

    return guarded


def make_ticket(token: str, now_s: float) -> str:
    """Lets a browser in for ten minutes from now (Unix time): `<expiry>.<HMAC-SHA-256 of it>`."""
    expiry = str(int(now_s) + TICKET_LIFE_S)
    return f"{expiry}.{_sign(token, expiry)}"


def is_valid(token: str, ticket: str, now_s: float) -> bool:
    """Whether `make_ticket` made this ticket, less than ten minutes ago."""
    expiry, _, signature = ticket.partition(".")
    is_ours = hmac.compare_digest(signature.encode(), _sign(token, expiry).encode())
    return is_ours and now_s < int(expiry)


def _sign(token: str, expiry: str) -> str:
    return hmac.new(token.encode(), expiry.encode(), hashlib.sha256).hexdigest()


def is_allowed(token: str, authorization: str) -> bool:
    """Whether the header names the token, as Bearer or as the password of Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # not of base 64, or not of UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), token.encode())


def is_same_origin(method: str, headers: Mapping[str, str]) -> bool:
    """Whether the request is not made by a page of another origin. Browsers say so themselves (the
    Fetch standard's Sec-Fetch-Site and Origin); programs send neither. To follow a link is allowed.
    """
    is_link = headers.get("sec-fetch-mode") == "navigate" and method in ("GET", "HEAD")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link:
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


async def _answer(
    send: Send, status: int, body: bytes, kind: str = "text/html", *, challenge: bool = False
) -> None:
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
    ]
    if challenge:
        headers.append((b"www-authenticate", b'Basic realm="rayception"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
