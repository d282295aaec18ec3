"""A PostgreSQL of a test's own: on loopback, with a password, gone after it."""

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from orchestration.stack.services import LOOPBACK, free_ports

DEBIAN = Path("/usr/lib/postgresql")  # its binaries lie there, off the PATH
RUN_AS = "postgres"  # who owns the cluster where we are root: initdb refuses to be


def find_binaries() -> Path | None:
    """The folder of initdb and pg_ctl: Debian's newest, else that on the PATH."""
    newest = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if newest:
        return newest[-1].parent
    return Path(on_path).resolve().parent if on_path else None


@dataclass(frozen=True)
class Cluster:
    """Where it answers, and to whom."""

    user: str
    password: str = field(repr=False)
    port: int

    def query(
        self, database: str, statement: LiteralString, *values: object
    ) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=LOOPBACK, port=self.port, user=self.user, password=self.password, dbname=database
        ) as connection:
            return connection.execute(statement, values).fetchall()


@contextlib.contextmanager
def cluster(user: str) -> Iterator[Cluster]:
    """A private cluster for the block, with a database of the user's name."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    password, [port] = secrets.token_hex(16), free_ports(1)
    # Not below pytest's folder, which its owner alone may enter.
    folder = Path(tempfile.mkdtemp(prefix="rayception-pg-"))
    secret = folder / "password"
    secret.write_text(password)
    as_owner: list[str] = []
    if os.geteuid() == 0:
        owner = pwd.getpwnam(RUN_AS)
        for path in (folder, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        as_owner = ["runuser", "-u", RUN_AS, "--"]
    data = str(folder / "data")

    def call(*arguments: str) -> None:
        # With its output in a file: the server keeps what its starter had open.
        with (folder / "output").open("a+") as out:
            done = subprocess.run(
                [*as_owner, *arguments], stdout=out, stderr=out, cwd="/", timeout=60, check=False
            )
        assert done.returncode == 0, (folder / "output").read_text()

    try:
        call(
            *(str(binaries / "initdb"), "--pgdata", data, "--username", user),
            *("--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8"),
            *("--locale", "C", "--no-sync"),
        )
        options = f"-p {port} -c listen_addresses={LOOPBACK} -c unix_socket_directories={folder}"
        control = (str(binaries / "pg_ctl"), "--pgdata", data, "-w", "--log", f"{folder}/log")
        call(*control, "--options", options, "start")
        try:
            made = Cluster(user=user, password=password, port=port)
            with psycopg.connect(
                host=LOOPBACK, port=port, user=user, password=password, dbname="postgres",
                autocommit=True,
            ) as connection:  # fmt: skip
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(user)))
            yield made
        finally:
            call(*control, "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
