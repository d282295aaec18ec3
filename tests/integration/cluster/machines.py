"""Machines made of namespaces: each has its own address, processes, shared memory and host name.

They hang on one bridge inside a namespace of its own, so that nothing of this machine's network is
touched. Killing a machine's first process kills all of it; a link that is set down is a cut cable.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import BUSY, wait_for

SUBNET = "10.77.0"


def why_not() -> str | None:
    """Why this machine cannot make them, if it cannot."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not there (apt-get install iproute2)"
    probe = f"rc-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this kernel or container makes no network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A bridge and the machines on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bridge = f"rc{os.getpid()}"
        # Ray's socket paths below it may not pass 107 bytes.
        self.folder_of_ray = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
        self.machines: dict[str, Machine] = {}
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "br0", "up")

    def add(self, name: str) -> "Machine":
        number = len(self.machines) + 2
        self.machines[name] = Machine(self, name, number)
        return self.machines[name]

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()
        ip("netns", "del", self.bridge)
        shutil.rmtree(self.folder_of_ray, ignore_errors=True)


class Machine:
    """One namespace with one address, and what runs there."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network, self.name, self.number = network, name, number
        self.namespace = f"{network.bridge}-{name}"
        self.address = f"{SUBNET}.{number}"
        self.running: list[subprocess.Popen[bytes]] = []
        self.log = network.folder / f"{name}.log"
        bridge = network.bridge
        # `ip netns exec` lays these over /etc: a machine knows its own name, and asks no name
        # server (which it could not reach, and would wait five seconds for).
        self.etc = Path("/etc/netns") / self.namespace
        self.etc.mkdir(parents=True)
        (self.etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {name}\n")
        (self.etc / "resolv.conf").write_text("options timeout:1 attempts:1\n")
        ip("netns", "add", self.namespace)
        ip("-n", bridge, "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0",
           "netns", self.namespace)  # fmt: skip
        ip("-n", bridge, "link", "set", f"to{number}", "master", "br0")
        ip("-n", bridge, "link", "set", f"to{number}", "up")
        for arguments in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"{SUBNET}.1"),  # nowhere: nothing leaves the bridge
        ):
            ip("-n", self.namespace, *arguments)
        self.temp = network.folder / "machines" / name  # what it has in place of `folder_of_ray`
        self.temp.mkdir(parents=True)

    def command(self, *arguments: str, own_processes: bool = False) -> list[str]:
        """What runs `arguments` there. own_processes: as a machine of its own, whose death is
        that of everything it started."""
        enter = ["ip", "netns", "exec", self.namespace]
        if not own_processes:
            return [*enter, *arguments]
        # Ray keeps a node's sockets where its head keeps its own; machines share no folder.
        temp = f"mount --bind {self.temp} {self.network.folder_of_ray}"
        setup = f'hostname {self.name} && mount -t tmpfs tmpfs /dev/shm && {temp} && exec "$@"'
        apart = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc"]
        return [*enter, *apart, "--kill-child", "sh", "-c", setup, "sh", *arguments]

    def start(
        self, *arguments: str, environment: Mapping[str, str], own_processes: bool = False
    ) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*arguments, own_processes=own_processes),
                env=dict(environment), stdout=log, stderr=log, cwd=self.temp,
            )  # fmt: skip
        self.running.append(process)
        return process

    def kill(self) -> None:
        """As if its power were gone."""
        for process in self.running:
            process.kill()
            process.wait(30 * BUSY)
        self.running.clear()

    def set_link(self, state: str) -> None:
        ip("-n", self.network.bridge, "link", "set", f"to{self.number}", state)

    def pids(self) -> list[int]:
        """Of every process there, as this machine counts them."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def close(self) -> None:
        self.kill()
        for pid in self.pids():  # what a killed parent left behind there
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
        wait_for(lambda: not self.pids(), 20, f"processes left in {self.namespace}")
        ip("netns", "del", self.namespace)
        shutil.rmtree(self.etc, ignore_errors=True)
