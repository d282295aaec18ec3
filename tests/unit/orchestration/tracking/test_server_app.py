"""Who the embedded MLflow answers. (A real browser and the real server: tests/integration.)"""

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.tracking.server_app import (
    LOGIN_PATH,
    TICKET_LIFE_S,
    guard,
    is_valid,
    make_ticket,
)

TOKEN = "a1" * 32
HOST = "127.0.0.1:5000"
BASIC = "Basic " + base64.b64encode(f"anyone:{TOKEN}".encode()).decode()


async def mlflow(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a secret of MLflow"})


def ask(path: str = "/api/2.0/mlflow/runs/get", method: str = "GET", body: bytes = b"",
        kind: str = "http", **headers: str) -> list[Any]:  # fmt: skip
    """The messages that a request is answered with. headers: `_` stands for `-`."""
    given = {"host": HOST, **{name.replace("_", "-"): text for name, text in headers.items()}}
    scope = {
        "type": kind, "method": method, "path": path,
        "headers": [(name.encode(), text.encode()) for name, text in given.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    async def serve() -> None:
        await guard(mlflow, TOKEN)(scope, receive, send)

    asyncio.run(serve())
    return sent


def status(**request: Any) -> int:
    return int(ask(**request)[0]["status"])


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer {TOKEN}", BASIC])
def test_the_token_is_let_through(authorization: str) -> None:
    assert status(authorization=authorization) == 200
    assert status(method="POST", authorization=authorization) == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, "Basic !",
        "Basic " + base64.b64encode(b"rayception:").decode(), "Basic /w==", f"Digest {TOKEN}",
        "Basic " + base64.b64encode(f"{TOKEN}:x".encode()).decode(),
    ],
)  # fmt: skip
def test_nobody_else_is(authorization: str) -> None:
    for path in ("/", "/api/2.0/mlflow/runs/get", "/static-files/x", "/version", "//health"):
        messages = ask(path=path, authorization=authorization)
        assert messages[0]["status"] == 401
        assert b"a secret" not in messages[1]["body"]
    assert ask(kind="websocket", authorization=authorization)[0]["type"] == "websocket.close"


def test_health_is_everybodys_and_a_person_reads_what_to_do() -> None:
    assert status(path="/health") == 200
    page = ask(path="/", sec_fetch_mode="navigate", sec_fetch_site="none")
    assert page[0]["status"] == 401
    assert b"rayception ui" in page[1]["body"]
    assert not [name for name, _ in page[0]["headers"] if name == b"www-authenticate"]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},  # another port of this machine
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},  # a form
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:6000"},
        {"origin": "null"},
    ],
)
def test_a_page_of_another_origin_may_not_ask_whatever_it_carries(headers: dict[str, str]) -> None:
    assert status(method="POST", authorization=BASIC, **headers) == 403
    ticket = make_ticket(TOKEN, 2e10).encode()
    assert status(path=LOGIN_PATH, method="POST", body=ticket, **headers) == 403


def test_a_browser_of_ours_may() -> None:
    own = {"sec_fetch_site": "same-origin", "origin": f"http://{HOST}", "authorization": BASIC}
    assert status(method="POST", **own) == 200
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(path="/", authorization=BASIC, **link) == 200
    assert status(path=LOGIN_PATH, **link) == 200


def test_a_ticket_gives_the_token_and_nothing_else_does() -> None:
    ticket = make_ticket(TOKEN, 2e10).encode()
    messages = ask(path=LOGIN_PATH, method="POST", body=ticket)
    assert json.loads(messages[1]["body"])[1] == TOKEN
    assert TOKEN.encode() not in ticket
    for wrong in (b"", b"x", b"1.", ticket[:-1], make_ticket(TOKEN, 0).encode(), ticket * 100,
                  make_ticket("b" * 64, 2e10).encode(), "é.é".encode(), b"\xff" * 40):  # fmt: skip
        messages = ask(path=LOGIN_PATH, method="POST", body=wrong)
        assert messages[0]["status"] == 403, wrong
        assert TOKEN.encode() not in messages[1]["body"]


@given(st.floats(0, 1e10), st.floats(-1e4, 1e4))
def test_a_ticket_is_good_for_ten_minutes(now_s: float, later_s: float) -> None:
    ticket = make_ticket(TOKEN, now_s)
    assert is_valid(TOKEN, ticket, now_s + later_s) == (
        now_s + later_s < int(now_s) + TICKET_LIFE_S
    )
