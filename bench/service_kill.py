"""Kills duovisord with -9 at random moments while clients do random things to VMs and networks.

After each restart, every VM that ran and was not asked to end still runs, in the same processes; what clients
were told is true; every operation is over; no process, socket, mount, memory file, console or run folder
belongs to nothing; and store, service and host say the same. Goal: 200 kills, 0 violations.
JSON: ``kills``, ``operations`` (that began), ``violations`` (their number), ``details``.

VMs are real ones: 16 MiB, a boot sector that obeys the power button; some have a CD-ROM drive whose medium is
changed, a TPM, UEFI variables, which are reset, a card on a bridge, which is limited, or room for processors,
which come. Limits of processors are changed where the host has groups. One restart of five is itself killed.
Networks are made in a namespace of the trial's own, and left out where there can be none.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.kill_clients import UNDER_WAY, Client, Pause
from bench.kill_devices import write_isos
from bench.kill_inspection import find_disagreements, find_running
from bench.kill_ledger import Ledger
from bench.kill_network_clients import NetworkClient, delete_networks, find_network_faults, read_networks
from bench.service_process import ServiceEndedError, ServiceProcess, find_processes, list_vms, write_json
from tests.contract.driver_partition.waiting import find_waiting
from tests.networks import BRIDGE, enter_network, why_no_namespace

from duovisor.client.errors import ApiError
from duovisor.process_identity import read_children

if TYPE_CHECKING:
    from bench.kill_inspection import RunningVm

CLIENTS, NAMES = 5, 10
NETWORKS = ("front", "back")
SETTLE_S = 10.0  # a VM that was just ending is taken off the host meanwhile
PARK_S = 90.0  # longer than a client waits for a reply
LIFE_S = (0.02, 1.5)
KILLED_WHILE_STARTING = 0.2
RUNS_ON = ("running", "paused")


class Trial:
    """One service, killed again and again; ``violations`` says what was found."""

    def __init__(
        self, service: ServiceProcess, seed: int, networks: tuple[str, ...], *, devices: bool
    ) -> None:
        self._bridge = BRIDGE if networks and devices else None
        self._service = service
        self._random = random.Random(seed)
        self.ledger = Ledger()
        self._pause = Pause(CLIENTS + len(networks))
        self.clients = [
            Client(
                service,
                self.ledger,
                self._pause,
                f"{seed}-{number}",
                NAMES,
                devices=devices,
                bridge=self._bridge,
            )
            for number in range(CLIENTS)
        ]
        self.network_clients = [
            NetworkClient(service, self.ledger, self._pause, seed, name) for name in networks
        ]
        self.everybody: tuple[Client | NetworkClient, ...] = (*self.clients, *self.network_clients)
        self._threads = [threading.Thread(target=client.run, daemon=True) for client in self.everybody]
        self._running: dict[str, RunningVm] = {}
        self._pressed: set[frozenset[object]] = set()
        self._start_s = 1.0
        self.kills = 0
        self.operations = 0
        self.survived = 0
        self.adopted = 0

    def run(self, kills: int) -> None:
        """Kill so often, then end everything in order and look for what is left."""
        write_isos(self._service.root)
        self._start_s = self._service.start()
        for thread in self._threads:
            thread.start()
        while self.kills < kills:
            time.sleep(self._random.uniform(*LIFE_S) * max(1.0, self._start_s))
            self._cycle(kills)
            if self.kills < kills:
                self._pause.resume()
        self._end()

    def _cycle(self, kills: int) -> None:
        """One life of the service ends, the next begins and is judged."""
        if self._service.has_ended:
            self._violate(f"the service ended by itself: {self._service.last_words()}")
        self._kill()
        if not self._pause.wait_all(PARK_S):
            raise ServiceEndedError("a client hangs though the service is gone")
        before = find_running(self._service.directories)
        self._service.spawn()
        while self.kills < kills and self._random.random() < KILLED_WHILE_STARTING:
            time.sleep(self._random.uniform(0, 1.1 * self._start_s))
            self._kill()
            self._service.spawn()
        self._service.wait_ready()
        self._judge(before)

    def _kill(self) -> None:
        self._service.kill()
        self.kills += 1

    def _judge(self, before: dict[str, RunningVm]) -> None:
        connection = self._service.connect()
        self._check_survivors(before, {vm["record"]["name"]: vm for vm in list_vms(connection)})
        self._check_operations(connection)
        recovery = connection.request("GET", "/v1/service").document["recovery"]
        self.adopted += len(recovery["adopted"])
        for problem in recovery["problems"]:
            self._violate(f"the service has a problem: {problem}")
        vms = self._settle(connection)
        after = find_running(self._service.directories)
        for name in self.ledger.may_have_ended & after.keys():
            self._pressed.add(after[name].processes)  # a power button that still may work
        self._running = after
        for line in self.ledger.reconcile(vms):
            self._violate(line)
        networks = read_networks(connection)
        for line in (line for client in self.network_clients for line in client.judge(networks)):
            self._violate(line)
        connection.close()

    def _check_survivors(self, before: dict[str, RunningVm], vms: dict[str, Any]) -> None:
        """What ran at the last look or at the kill runs on, unless somebody wanted its end."""
        for name, vm in self._running.items():
            if name not in self.ledger.may_have_ended and before.get(name) != vm and not self._is_pressed(vm):
                self._violate(f"{name} {vm} did not run any more when the service was killed")
        for name, vm in before.items():
            if name in self.ledger.may_be_ending or self._is_pressed(vm):
                continue
            self.survived += 1
            found = vms.get(name)
            if found is None or found["status"]["state"] not in RUNS_ON:
                self._violate(f"{name} {vm} ran when the service was killed, and is {found}")
            elif (now := find_running(self._service.directories).get(name)) != vm:
                self._violate(f"{name} does not run in the processes {vm} that it had, but in {now}")

    def _is_pressed(self, vm: RunningVm) -> bool:
        return vm.processes in self._pressed

    def _check_operations(self, connection: Any) -> None:
        """Those that were accepted are known and over, and none that was over has changed its mind."""
        for id, seen in self.ledger.operations.items():
            self.operations += 1
            try:
                state = connection.request("GET", f"/v1/operations/{id}").document["state"]
            except ApiError as error:
                self._violate(f"operation {id} ({seen}) was accepted: {error}")
                continue
            if state in UNDER_WAY:
                self._violate(f"operation {id} ({seen}) is {state} though its service was killed")
            if "." not in seen and seen != state:
                self._violate(f"operation {id} was {seen} and is {state}")
        for state in UNDER_WAY:
            for left in connection.request("GET", f"/v1/operations?state={state}").document["items"]:
                self._violate(f"an operation is {state} though its service was killed: {left}")

    def _settle(self, connection: Any) -> list[dict[str, Any]]:
        """Wait until host, store and service agree, or report where they do not; returns the VMs."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            vms = list_vms(connection)
            networks = read_networks(connection)
            own_pids = {self._service.pid, *read_children(self._service.pid)}  # with the partition factory
            own_pids |= {pid for child in tuple(own_pids) for pid in find_waiting(child)}
            own_pids |= {each["server_pid"] for each in networks.values()}
            found = find_disagreements(self._service.directories, vms, own_pids, self._bridge)
            found += find_network_faults(networks)
            if not found or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for line in found:
            self._violate(line)
        return vms

    def _violate(self, what: str) -> None:
        line = f"after kill {self.kills}: {what}"
        print(f"VIOLATION {line}", flush=True)
        self.ledger.report(line)

    def _end(self) -> None:
        """Stop and delete everything; then nothing may be left, and the service must end when it is told."""
        for client in self.everybody:
            client.stop.set()
        self._pause.resume()
        for thread in self._threads:
            thread.join(PARK_S)
        connection = self._service.connect()
        self._wait_idle(connection)
        for vm in list_vms(connection):
            path = f"/v1/vms/{vm['record']['name']}"
            if vm["status"]["pid"] is not None:
                connection.request("POST", f"{path}/stop")
                self._wait_idle(connection)
            connection.request("DELETE", path, None, {"If-Match": "*"})
        delete_networks(connection)
        self._settle(connection)
        connection.close()
        if (code := self._service.stop()) != 0:
            self._violate(f"the service ended with {code}: {self._service.last_words()}")
        for pid, command in find_processes(self._service.root).items():
            self._violate(f"process {pid} is left at the end: {command}")
        for line in self._service.log.read_text(errors="replace").splitlines():
            if "Traceback" in line or " met a fault" in line or line.startswith("ERROR"):
                self._violate(f"the service's log says {line}")

    def _wait_idle(self, connection: Any) -> None:
        for state in UNDER_WAY:
            while connection.request("GET", f"/v1/operations?state={state}").document["items"]:
                time.sleep(0.05)


def run_trial(kills: int, seed: int, *, devices: bool) -> dict[str, Any]:
    """Kill a service so often, whose VMs have CD-ROM drives, TPMs and UEFI or not; returns the figures."""
    begun = time.monotonic()
    why_not = why_no_namespace()
    with nullcontext() if why_not else enter_network(), ServiceProcess() as service:
        trial = Trial(service, seed, () if why_not else NETWORKS, devices=devices)
        trial.run(kills)
        if trial.ledger.violations:
            kept = Path(f"{service.root}.log")
            kept.write_bytes(service.log.read_bytes())
            print(f"the service's log is kept in {kept}")
    return {
        "kills": trial.kills,
        "operations": trial.operations,
        "violations": len(trial.ledger.violations),
        "requests": sum(client.requests for client in trial.everybody),
        "resource_changes": sum(client.resource_changes for client in trial.clients),
        "vms_that_had_to_survive": trial.survived,
        "vms_adopted": trial.adopted,
        "seed": seed,
        "duration_s": round(time.monotonic() - begun, 1),
        "details": trial.ledger.violations,
    }


def main() -> int:
    """Parse options, kill, print and write; the exit code is 1 when there are violations."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how often the service is killed")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random but the scheduler")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures = run_trial(options.kills, options.seed, devices=True)
    for name, value in figures.items():
        if name != "details":
            print(f"{name.replace('_', ' '):24} {value:>10,}")
    for line in figures["details"]:
        print(line)
    print(f"goal 0 violations: {'missed' if figures['violations'] else 'met'}")
    write_json(options.json, figures)
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
