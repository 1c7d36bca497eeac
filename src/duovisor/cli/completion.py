"""Shell completion of names; asks a service that runs, and never starts one or fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Callable

    import click


def complete_vm(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of VMs that begin like this."""
    return _complete("/v1/vms", lambda item: str(item["record"]["name"]), incomplete)


def complete_snapshot(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of a VM's snapshots that begin like this; the VM was named before."""
    from duovisor.client.service import vm_path

    vm = ctx.params.get("vm")
    path = f"{vm_path(str(vm))}/snapshots"
    return _complete(path, lambda item: str(item["name"]), incomplete) if vm else []


def complete_operation(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The ids of operations that begin like this."""
    return _complete("/v1/operations", lambda item: str(item["id"]), incomplete)


def complete_token(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of tokens that begin like this."""
    return _complete("/v1/tokens", lambda item: str(item["name"]), incomplete)


def complete_image(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of images that begin like this."""
    return _complete("/v1/images", lambda item: str(item["name"]), incomplete)


def complete_pool(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of pools that begin like this."""
    return _complete("/v1/pools", lambda item: str(item["name"]), incomplete)


def complete_volume(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Volumes that begin like this; those of the pool default by name alone."""
    return _complete(
        "/v1/volumes",
        lambda item: str(item["name"] if item["pool"] == "default" else f"{item['pool']}/{item['name']}"),
        incomplete,
    )


def complete_network(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of networks that begin like this."""
    return _complete("/v1/networks", lambda item: str(item["name"]), incomplete)


def _complete(path: str, name_of: Callable[[dict[str, Any]], str], incomplete: str) -> list[str]:
    from duovisor.cli.connection import current_endpoint
    from duovisor.client.service import ServiceClient

    try:
        with ServiceClient(current_endpoint()._replace(is_default=False)) as client:
            return [name for item in client.list_all(path) if (name := name_of(item)).startswith(incomplete)]
    except DuovisorError:
        return []
