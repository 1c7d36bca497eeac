"""The service that a command speaks with: which one, and what ``--debug`` shows of the conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.client.connection import Call
    from duovisor.client.endpoint import Endpoint
    from duovisor.client.service import ServiceClient


class GlobalOptions(NamedTuple):
    """What was typed before the command's name."""

    debug: bool = False
    host: str | None = None
    token_file: Path | None = None
    certificate: Path | None = None


def connect() -> ServiceClient:
    """A client of the service that the options mean; nothing is sent yet. Raises ``EndpointError``."""
    from duovisor.client.service import ServiceClient

    client = ServiceClient(current_endpoint(), print_call if read_options().debug else lambda call: None)
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        ctx.call_on_close(client.close)
    return client


def current_endpoint() -> Endpoint:
    """Where the service is. Raises ``EndpointError``."""
    from duovisor.client.endpoint import find_endpoint

    options = read_options()
    return find_endpoint(options.host, options.token_file, options.certificate)


def read_options() -> GlobalOptions:
    """The global options; the default ones where there is no command, as in shell completion."""
    ctx = click.get_current_context(silent=True)
    found = ctx.find_object(GlobalOptions) if ctx is not None else None
    return found or GlobalOptions()


def print_call(call: Call) -> None:
    """One line on standard error for a call of the API."""
    status = str(call.status) if call.status else "---"
    click.echo(click.style(f"{call.method} {call.path} {status} {call.took_ms:.1f} ms", dim=True), err=True)
