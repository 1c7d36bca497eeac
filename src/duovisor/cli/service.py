"""``duovisor service``: duovisord itself, which other commands start when they need it."""

from __future__ import annotations

import os
import select
import signal
from typing import Any

import click

from duovisor.cli.connection import connect, current_endpoint
from duovisor.cli.output import json_option, print_result
from duovisor.cli.table import format_age, format_time, format_values

NOT_RUNNING = 3  # as `systemctl status` says it
STOP_TIMEOUT_S = 30.0
FOUND = ("adopted", "ended", "finished", "rolled_back", "removed", "problems")


@click.group()
def command() -> None:
    """Start, stop and look at duovisord."""


@command.command()
@json_option
def start(as_json: bool) -> None:
    """Start the service of this host, if it does not run."""
    from duovisor.client.endpoint import find_endpoint

    client = connect()
    if client.endpoint == find_endpoint(environ=os.environ):
        client.ensure_service()
    service = client.get("/v1/service")
    text = f"duovisord runs: pid {service['pid']}, {client.endpoint}"
    print_result({"running": True, **service}, as_json, lambda: click.echo(text))


@command.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the service of this host; its VMs run on."""
    from duovisor.client.errors import EndpointError, ServiceUnreachableError
    from duovisor.client.service import ServiceClient

    endpoint = current_endpoint()
    if endpoint.socket is None:
        raise EndpointError(f"{endpoint} is another host's service", remedy="stop it there")
    try:
        with ServiceClient(endpoint._replace(is_default=False)) as client:
            pid = int(client.get("/v1/service")["pid"])
    except ServiceUnreachableError as error:
        if not error.is_absent:
            raise
        print_result({"running": False}, as_json, lambda: click.echo("duovisord does not run"))
        return
    end(pid)
    print_result(
        {"running": False, "pid": pid}, as_json, lambda: click.echo("duovisord is stopped; its VMs run on")
    )


@command.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show whether the service runs, since when, and what it found when it started. Exit code 3 if not."""
    from duovisor.client.errors import ServiceUnreachableError
    from duovisor.client.service import ServiceClient

    endpoint = current_endpoint()
    try:
        with ServiceClient(endpoint._replace(is_default=False)) as client:
            service = client.get("/v1/service")
    except ServiceUnreachableError as error:
        if not error.is_absent:
            raise
        text = f"duovisord does not run at {endpoint}; a command that needs it starts it"
        print_result({"running": False}, as_json, lambda: click.echo(text))
        ctx.exit(NOT_RUNNING)
    print_result(
        {"running": True, **service}, as_json, lambda: click.echo(render_service(service, str(endpoint)))
    )


def end(pid: int) -> None:
    """Ask a service to end and wait until it has. Raises ``ServiceStopError``."""
    from duovisor.client.errors import ServiceStopError

    try:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            ended = select.select([pidfd], [], [], STOP_TIMEOUT_S)[0]
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ServiceStopError(
            f"you may not stop duovisord (pid {pid})", remedy="ask the user who runs it"
        ) from error
    if not ended:
        raise ServiceStopError(
            f"duovisord (pid {pid}) did not end within {STOP_TIMEOUT_S:g} s",
            remedy=f"kill -9 {pid}; VMs run on",
        )


def render_service(service: dict[str, Any], endpoint: str) -> str:
    """All of a service."""
    recovery = service["recovery"]
    found = [f"{title.replace('_', ' ')}: {', '.join(recovery[title])}" for title in FOUND if recovery[title]]
    if recovery["host_restarted"]:
        found.insert(0, "the host was started again")
    return format_values(
        {
            "duovisord": f"{service['version']}, pid {service['pid']}",
            "address": endpoint,
            "since": f"{format_time(service['started_at'])} ({format_age(service['started_at'])})",
            "started in": f"{service['start_s']:.2f} s",
            "found": "\n".join(found) or "nothing ran",
            "you are": f"{service['who']}, {service['role']}",
            "state": service["state_folder"],
            "runtime": service["runtime_folder"],
        }
    )
