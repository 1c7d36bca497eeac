"""VMs that live as long as a command: defined, started, and gone without a trace when it ends."""

from __future__ import annotations

import contextlib
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from duovisor.cli.progress import follow
from duovisor.client.errors import ApiError
from duovisor.client.service import vm_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.client.service import ServiceClient
    from duovisor.spec.vm import VirtualMachineSpec

ANY_REVISION = {"If-Match": "*"}
TRIES = 3


@contextmanager
def throwaway_vm(client: ServiceClient, spec: VirtualMachineSpec, *, quiet: bool) -> Iterator[int]:
    """A VM that runs; yields the number of the last event before it was defined.

    It is taken away on leaving, however that happens; should this process be killed, by a service that is on
    the same host. Raises ``ApiError``.
    """
    after = int(client.get("/v1/events", limit=1)["last"])
    with leaving_at_signals():
        define(client, spec)
        try:
            follow(client, client.act(spec.name, "start"), quiet=quiet)
            yield after
        finally:
            remove(client, spec.name)


def define(client: ServiceClient, spec: VirtualMachineSpec) -> None:
    """Define a VM that ends with this process, where the service can see that. Raises ``ApiError``."""
    document = {"spec": spec.model_dump(mode="json")}
    if client.endpoint.socket:
        try:
            client.request("POST", "/v1/vms?autodestroy=true", document)
            return
        except ApiError as error:
            if error.field != "autodestroy":  # which is: we are in another container than the service
                raise
    client.request("POST", "/v1/vms", document)


@contextmanager
def leaving_at_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the clean-up, as SIGINT does."""

    def leave(number: int, frame: object) -> None:
        raise click.Abort

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove(client: ServiceClient, name: str) -> None:
    """End what is under way on a VM, pull its plug if it runs, and forget it. Raises ``ApiError``."""
    for attempt in range(TRIES):
        cancel_operations(client, name)
        try:
            if client.get(vm_path(name))["status"]["pid"] is not None:
                client.follow(client.act(name, "stop"))
            client.request("DELETE", vm_path(name), headers=ANY_REVISION)
            return
        except ApiError as error:  # it may have ended, or somebody may have acted on it, between two requests
            if error.code == "vm-not-found":
                return
            if attempt == TRIES - 1:
                raise


def cancel_operations(client: ServiceClient, name: str) -> None:
    """Cancel what is under way on a VM and wait for its end."""
    for state in ("pending", "running"):
        for operation in client.list_all("/v1/operations", state=state):
            if operation["object"] == f"vm/{name}":
                with contextlib.suppress(ApiError):  # it ended by itself, or as it was asked to
                    client.request("POST", f"/v1/operations/{operation['id']}/cancel")
                    client.follow(operation)
