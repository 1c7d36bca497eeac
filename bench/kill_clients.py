"""Clients that do random things to VMs, and wait whenever the service is gone."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.kill_devices import CPUS_MAX, ISOS, build_vm
from bench.kill_ledger import GONE, SERVER_ERROR, Fact, Ledger, read_fact
from bench.service_process import build_boot_disk

from duovisor.client.errors import ApiError, ConnectionLostError, ServiceUnreachableError
from duovisor.hardware.capabilities import find_tools
from duovisor.hardware.resource_groups import find_groups_problem

if TYPE_CHECKING:
    from bench.service_process import ServiceProcess

    from duovisor.client.connection import Connection

    Document = dict[str, Any]

UNDER_WAY = ("pending", "running")
PLUGGED_BYTES = 1 << 20
UNPLUG_TIMEOUT_S = 0.05
POLL_S = 0.02
SHUTDOWN_TIMEOUTS_S = (0.05, 5.0)  # one that often passes before the guest has ended
MARKS = 10_000
# what several clients may well be told
EXPECTED = frozenset({
    "busy", "wrong-state", "vm-not-found", "name-in-use", "revision-conflict", "shutdown-timeout",
    "operation-cancelled", "operation-finished", "operation-interrupted", "device-not-found",
    "plug-refused", "unplug-timeout",  # no slot is left; the guest, a boot sector, lets go of nothing
})  # fmt: skip
# a guest whose power button was pressed may be gone at any moment
MEETS_END = dict.fromkeys(("vm.pause", "vm.resume", "vm.reset"), frozenset({"vmm-gone"}))
MEETS_END |= dict.fromkeys(("vm.attach-disk", "vm.detach-disk"), frozenset({"vmm-gone", "partition-failed"}))
MEETS_END |= dict.fromkeys(("vm.insert", "vm.eject"), frozenset({"vmm-gone", "partition-failed"}))
# what is done to a VM in each state, and how often
CHOICES: dict[str, dict[str, int]] = {
    "rest": {
        "start": 60,
        "edit": 10,
        "rename": 12,
        "delete": 10,
        "stop": 2,
        "pause": 2,
        "attach": 3,
        "detach": 10,
        "insert": 4,
        "eject": 3,
        "reset-nvram": 5,
        "set-cpus": 3,
        "limit-nic": 3,
        "set-limits": 3,
    },
    "running": {
        "pause": 20,
        "reset": 10,
        "shutdown": 14,
        "stop": 14,
        "edit": 8,
        "start": 2,
        "delete": 2,
        "attach": 16,
        "detach": 3,
        "insert": 16,
        "eject": 8,
        "reset-nvram": 1,
        "set-cpus": 12,
        "limit-nic": 12,
        "set-limits": 8,
    },
    "paused": {
        "resume": 60,
        "stop": 15,
        "reset": 10,
        "edit": 5,
        "shutdown": 2,
        "rename": 2,
        "attach": 8,
        "insert": 8,
        "eject": 3,
        "set-cpus": 4,
        "limit-nic": 4,
    },
    "on the way": {"stop": 30, "edit": 20, "pause": 20, "resume": 5, "start": 5},
}
KINDS = {"running": "running", "paused": "paused", "starting": "on the way", "stopping": "on the way"}


class Pause:
    """Clients wait here while there is no service; the judge waits until all of them do."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._waiting = 0
        self._round = 0
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Wait for the next ``resume``."""
        with self._changed:
            current = self._round
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._round != current)

    def wait_all(self, timeout_s: float) -> bool:
        """Wait until every client waits; False when one does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting == self._clients, timeout_s)

    def resume(self) -> None:
        """Let all of them go on."""
        with self._changed:
            self._waiting = 0
            self._round += 1
            self._changed.notify_all()


class BaseClient:
    """A client; ``run`` in a thread of its own until ``stop`` is set and the service is gone."""

    what = "a client"

    def __init__(self, service: ServiceProcess, ledger: Ledger, pause: Pause, seed: str) -> None:
        self._service = service
        self._ledger = ledger
        self._pause = pause
        self._random = random.Random(seed)
        self._connection: Connection = service.connect()
        self.stop = threading.Event()
        self.requests = 0

    def run(self) -> None:
        """Act, and wait while there is no service."""
        while not self.stop.is_set():
            try:
                self._act()
            except (ConnectionLostError, ServiceUnreachableError):
                self._connection.close()
                self._pause.wait()
            except Exception as error:  # a thread that ends silently would be missed by nobody
                self._judge(error)
        self._connection.close()

    def _act(self) -> None:
        raise NotImplementedError

    def _judge(self, error: Exception) -> None:
        self._ledger.report(f"{self.what} failed: {error!r}")

    def _send(self, method: str, path: str, document: Any = None, vm: Document | None = None) -> Document:
        """A request; a change of ``vm`` names the revision that was seen."""
        self.requests += 1
        headers = {} if vm is None else {"If-Match": f'"{vm["record"]["revision"]}"'}
        reply: Document = self._connection.request(method, path, document, headers).document
        return reply


class Client(BaseClient):
    """One that acts on VMs."""

    def __init__(
        self,
        service: ServiceProcess,
        ledger: Ledger,
        pause: Pause,
        seed: str,
        names: int,
        *,
        devices: bool,
        bridge: str | None,
    ) -> None:
        super().__init__(service, ledger, pause, seed)
        self._devices = devices
        self._bridge = bridge
        self.resource_changes = 0
        tools = find_tools(os.environ)
        is_root = os.geteuid() == 0
        self._has_groups = not find_groups_problem(Path("/"), tools.systemd_run, os.environ, is_root=is_root)
        self._names = [f"vm{number}" for number in range(names)]

    def _judge(self, error: Exception) -> None:
        if not isinstance(error, ApiError):
            super()._judge(error)
        elif error.code not in EXPECTED or error.status >= SERVER_ERROR:
            self._ledger.report(f"a request met {error.status} {error.code}: {error}")

    def _act(self) -> None:
        name = self._random.choice(self._names)
        try:
            vm = self._send("GET", f"/v1/vms/{name}")
        except ApiError as error:
            if error.code != "vm-not-found":
                raise
            self._create(name)
            return
        choices = CHOICES[KINDS.get(vm["status"]["state"], "rest")]
        (action,) = self._random.choices(list(choices), list(choices.values()))
        match action:
            case "edit":
                self._edit(vm)
            case "rename":
                self._rename(vm)
            case "delete":
                self._delete(vm)
            case "stop" | "shutdown":
                self._end(name, action)
            case "attach":
                self._attach(name)
            case "detach":
                self._detach(vm)
            case "insert" | "eject":
                self._change_medium(name, action)
            case "set-cpus" | "limit-nic" | "set-limits":
                self._change_resources(vm, action)
            case "reset-nvram":
                self._send("POST", f"/v1/vms/{name}/reset-nvram")
            case _:
                self._follow(self._begin(name, action))

    def _mark(self) -> int:
        return self._ledger.next_number() % MARKS

    def _create(self, name: str) -> None:
        fact = Fact(name, self._mark())
        disk = self._service.root / f"disk{self._ledger.next_number()}.raw"
        disk.write_bytes(build_boot_disk())
        spec = build_vm(name, disk, self._random, devices=self._devices, bridge=self._bridge)
        with self._ledger.creating(fact) as answer:
            vm = self._send("POST", "/v1/vms", {"spec": spec, "autostart": {"order": fact.mark}})
            answer.uuid, answer.revision = vm["record"]["uuid"], vm["record"]["revision"]

    def _edit(self, vm: Document) -> None:
        fact = read_fact(vm)._replace(mark=self._mark())
        with self._ledger.changing(vm, fact) as answer:
            definition = {"spec": vm["record"]["spec"], "autostart": {"order": fact.mark}}
            changed = self._send("PUT", f"/v1/vms/{fact.name}", definition, vm)
            answer.revision = changed["record"]["revision"]

    def _rename(self, vm: Document) -> None:
        name = vm["record"]["name"]
        fact = read_fact(vm)._replace(name=self._random.choice(self._names))
        with self._ledger.changing(vm, fact) as answer:
            changed = self._send("POST", f"/v1/vms/{name}/rename", {"name": fact.name}, vm)
            answer.revision = changed["record"]["revision"]

    def _attach(self, name: str) -> None:
        disk = self._service.root / f"plugged{self._ledger.next_number()}.raw"
        disk.write_bytes(bytes(PLUGGED_BYTES))
        self._follow(self._begin(name, "attach-disk", {"disk": {"path": str(disk)}}))

    def _detach(self, vm: Document) -> None:
        """The disk that was attached last; the first is the one that the VM boots from."""
        slots = [disk["slot"] for disk in vm["record"]["spec"]["disks"][1:]]
        if slots:
            leaving = {"device": f"disk{slots[-1]}", "timeout_s": UNPLUG_TIMEOUT_S}
            self._follow(self._begin(vm["record"]["name"], "detach-disk", leaving))

    def _change_medium(self, name: str, action: str) -> None:
        """In a VM that may have no drive."""
        medium = {"path": str(self._service.root / self._random.choice(ISOS))}
        options = {"medium": medium} if action == "insert" else {}
        self._follow(self._begin(name, f"cdroms/0/{action}", options))

    def _change_resources(self, vm: Document, action: str) -> None:
        """Where the VM has what it takes, and the host groups for limits of processors."""
        choose, spec = self._random.choice, vm["record"]["spec"]
        wanted: Document | None = None
        if action == "set-cpus" and spec["cpus_max"]:
            wanted = {"cpus": self._random.randint(1, CPUS_MAX)}
        elif action == "limit-nic" and spec["nics"]:
            limits = {each: choose((None, 1 << 20, 8 << 20)) for each in ("in_limit", "out_limit")}
            wanted = {"device": "nic0", **limits}
        elif action == "set-limits" and self._has_groups:
            wanted = {"cpu_weight": choose((None, 50, 200)), "cpu_limit": choose((None, 0.5, 1.5))}
        if wanted is None:
            return
        try:
            self._send("POST", f"/v1/vms/{vm['record']['name']}/{action}", wanted)
        except ApiError as error:
            if error.code != "vmm-gone":  # a guest whose power button was pressed
                raise
        else:
            self.resource_changes += 1

    def _delete(self, vm: Document) -> None:
        with self._ledger.changing(vm, GONE):
            self._send("DELETE", f"/v1/vms/{vm['record']['name']}", None, vm)

    def _end(self, name: str, action: str) -> None:
        """Stop or shut down: the VM may end from now on, until the outcome was seen."""
        number = self._ledger.begin_ending(name)
        try:
            operation = self._begin(name, action)
        except ApiError as error:
            if error.status < SERVER_ERROR:
                self._ledger.end_settled(number, refused=True)
            raise
        ended = self._follow(operation)
        if ended is None:
            return
        fault = ended["error"]
        if ended["state"] == "done" or (fault and fault["code"] in ("wrong-state", "busy")):
            self._ledger.end_settled(number, refused=ended["state"] != "done")

    def _begin(self, name: str, action: str, options: Document | None = None) -> Document:
        if action == "shutdown":
            options = {"timeout_s": self._random.choice(SHUTDOWN_TIMEOUTS_S)}
        operation = self._send("POST", f"/v1/vms/{name}/{action}", options)
        self._ledger.accepted(operation)
        return operation

    def _follow(self, operation: Document) -> Document | None:
        """Follow an operation to its end; now and then cancel it, or lose interest (None)."""
        if self._random.random() < 0.1:
            return None
        path = f"/v1/operations/{operation['id']}"
        if self._random.random() < 0.07:
            self._send("POST", f"{path}/cancel")
        while operation["state"] in UNDER_WAY:
            time.sleep(POLL_S)
            operation = self._send("GET", path)
        self._ledger.finished(operation)
        fault = operation["error"]
        if fault and fault["code"] not in EXPECTED | MEETS_END.get(operation["action"], frozenset()):
            self._ledger.report(f"{operation['action']} of {operation['object']} failed: {fault}")
        return operation
