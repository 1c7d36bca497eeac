"""What duovisord's API costs: with 50 VMs that were started at once, then with 10,000 definitions.

``health`` is timed in turn with the others, and is nearly nothing but HTTP: its tail is what the machine and
the HTTP stack make of any request. The processor time of the service, by the kernel's count, does not depend
on who else wants the processors. JSON: ``list_p99_ms`` (a page of 100), ``get_p99_ms``, ``creates_per_s``,
``parallel_start_s``, ``service_pss_mib`` (the highest seen), ``cli_list_ms``, and what explains them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.service_process import (
    ServiceProcess,
    build_boot_disk,
    build_small_vm,
    read_pss_mib,
    write_json,
)

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.client.connection import Connection

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CLIENTS = 4
CLI_ROUNDS = 9
GOALS = {
    "list_p99_ms": 50.0, "get_p99_ms": 10.0, "creates_per_s": 200.0, "service_pss_mib": 150.0,
    "cli_list_ms": 300.0,
}  # fmt: skip
AT_LEAST = frozenset({"creates_per_s"})


def read_cpu_s(pid: int) -> float:
    """Processor time that a process has used; proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def wait_done(connection: Connection, operation: dict[str, Any]) -> None:
    """Wait for an operation, which must succeed."""
    while operation["state"] in ("pending", "running"):
        time.sleep(0.02)
        operation = connection.request("GET", f"/v1/operations/{operation['id']}").document
    assert operation["state"] == "done", operation


def measure_starts(service: ServiceProcess, design: Design, count: int) -> float:
    """Seconds until so many VMs, all asked for at once, run."""
    connection = service.connect()
    names = [f"{design}-{number:02}" for number in range(count)]
    for name in names:
        disk = service.root / f"{name}.raw"
        disk.write_bytes(build_boot_disk())
        connection.request("POST", "/v1/vms", {"spec": build_small_vm(name, design, disk)})
    begun = time.monotonic()
    operations = [connection.request("POST", f"/v1/vms/{name}/start").document for name in names]
    for operation in operations:
        wait_done(connection, operation)
    return time.monotonic() - begun


def stop_all(service: ServiceProcess, design: Design, count: int) -> None:
    """Stop and forget what ``measure_starts`` made."""
    connection = service.connect()
    for number in range(count):
        path = f"/v1/vms/{design}-{number:02}"
        wait_done(connection, connection.request("POST", f"{path}/stop").document)
        connection.request("DELETE", path, None, {"If-Match": "*"})


def measure_creates(service: ServiceProcess, count: int) -> tuple[float, float]:
    """Definitions per second by several clients, and milliseconds of processor for each."""

    def create(first: int) -> None:
        connection = service.connect()
        for number in range(first, count, CLIENTS):
            spec = build_small_vm(name_of(number), Design.MONOLITHIC, Path("/none"))
            connection.request("POST", "/v1/vms", {"spec": spec})

    threads = [threading.Thread(target=create, args=(first,)) for first in range(CLIENTS)]
    begun, used_s = time.monotonic(), read_cpu_s(service.pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.monotonic() - begun), (read_cpu_s(service.pid) - used_s) / count * 1e3


def name_of(number: int) -> str:
    """What a definition is called; their order is not that of their making."""
    return f"vm-{number * 7919 % 10_007:05}"


def measure_requests(service: ServiceProcess, count: int, rounds: int) -> dict[str, Any]:
    """Time pages of 100, single VMs and ``health`` in turn."""
    connection = service.connect()
    choose = random.Random(1).randrange
    paths: dict[str, Callable[[], str]] = {
        "list": lambda: f"/v1/vms?limit=100&after={name_of(choose(count))}",
        "get": lambda: f"/v1/vms/{name_of(choose(count))}",
        "health": lambda: "/v1/health",
    }
    took_ms: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            begun = time.perf_counter()
            connection.request("GET", path())
            took_ms[name].append((time.perf_counter() - begun) * 1e3)
    figures: dict[str, Any] = {}
    for name, values in took_ms.items():
        figures[f"{name}_p50_ms"] = statistics.median(values)
        figures[f"{name}_p99_ms"] = percentile(values, 99)
        figures[f"{name}_cpu_ms"] = measure_cpu(service, paths[name], rounds // 2)
    for name in ("list", "get"):
        figures[f"{name}_p99_over_health_p99"] = figures[f"{name}_p99_ms"] / figures["health_p99_ms"]
    return figures


def measure_cpu(service: ServiceProcess, path: Callable[[], str], rounds: int) -> float:
    """Milliseconds of processor that the service needs for a request."""
    connection = service.connect()
    used_s = read_cpu_s(service.pid)
    for _ in range(rounds):
        connection.request("GET", path())
    return (read_cpu_s(service.pid) - used_s) / rounds * 1e3


def measure_cli(service: ServiceProcess) -> float:
    """Milliseconds of ``duovisor vm list``, from the start of the process to its end; the median."""
    program = shutil.which("duovisor", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None
    took_ms = []
    for _ in range(CLI_ROUNDS):
        begun = time.perf_counter()
        subprocess.run(
            (program, "--host", f"unix://{service.socket}", "vm", "list"),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        took_ms.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(took_ms)


def measure(count: int, parallel: int, rounds: int) -> dict[str, Any]:
    """All figures, in the order in which a host grows."""
    figures: dict[str, Any] = {"load_1_min_before": os.getloadavg()[0]}
    memory = []
    with ServiceProcess() as service:
        figures["service_start_s"] = service.start()
        memory.append(read_pss_mib(service.pid))
        for design, suffix in ((Design.MICROKERNELIZED, "_microkernelized"), (Design.MONOLITHIC, "")):
            figures[f"parallel_start{suffix}_s"] = measure_starts(service, design, parallel)
            memory.append(read_pss_mib(service.pid))
            if design is Design.MONOLITHIC:
                figures["cli_list_ms"] = measure_cli(service)
            stop_all(service, design, parallel)
        figures["creates_per_s"], figures["create_cpu_ms"] = measure_creates(service, count)
        memory.append(read_pss_mib(service.pid))
        figures |= measure_requests(service, count, rounds)
        figures["cli_list_all_ms"] = measure_cli(service)
        memory.append(read_pss_mib(service.pid))
        assert service.stop() == 0, service.last_words()
    figures["service_pss_mib"] = max(memory)
    figures["service_pss_empty_mib"] = memory[0]
    figures["load_1_min_after"] = os.getloadavg()[0]
    return {name: round(value, 2) for name, value in figures.items()} | {
        "definitions": count, "parallel": parallel,
    }  # fmt: skip


def describe_goal(name: str, value: float) -> str:
    """Whether a figure met its goal; empty for a figure without one."""
    goal = GOALS.get(name)
    if goal is None:
        return ""
    is_met = value >= goal if name in AT_LEAST else value <= goal
    return f"goal {'≥' if name in AT_LEAST else '≤'} {goal:g}: {'met' if is_met else 'missed'}"


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vms", type=int, default=10_000, help="how many definitions, up to 10,007")
    parser.add_argument("--parallel", type=int, default=50, help="how many VMs are started at once")
    parser.add_argument("--rounds", type=int, default=1000, help="timed requests of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures = measure(options.vms, options.parallel, options.rounds)
    for name, value in figures.items():
        print(f"{name:32} {value:>10,}  {describe_goal(name, value)}".rstrip())
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
