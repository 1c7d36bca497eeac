"""``duovisor vm start|pause|resume|reset|shutdown|stop``: actions, each an operation of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow

if TYPE_CHECKING:
    from collections.abc import Callable

    Describe = Callable[[dict[str, Any]], str]

Command = TypeVar("Command", bound="Callable[..., Any]")

DONE = {
    "start": "runs",
    "pause": "is paused",
    "resume": "runs on",
    "reset": "was reset",
    "shutdown": "is shut down",
    "stop": "is off",
}


def describe_done(operation: dict[str, Any]) -> str:
    """What an action that is done has made of a VM."""
    return DONE[operation["action"].partition(".")[2]]


no_wait_option = click.option("--no-wait", is_flag=True, help="Print the operation's id and leave.")


def act(
    names: tuple[str, ...],
    action: str,
    *,
    no_wait: bool,
    as_json: bool,
    document: Any = None,
    describe: Describe = describe_done,
) -> None:
    """Begin an action on each VM, then follow them all; raises the first error when all have ended.

    ``describe``: what is said of an operation that is done, behind the VM's name.
    """
    from duovisor.errors import DuovisorError

    client = connect()
    results, errors = [], []
    for name in dict.fromkeys(names):
        try:
            results.append((name, client.act(name, action, document)))
        except DuovisorError as error:
            errors.append(error)
    if not no_wait:
        for index, (name, operation) in enumerate(results):
            try:
                results[index] = (name, follow(client, operation, quiet=as_json))
            except DuovisorError as error:
                errors.append(error)
                results[index] = (name, client.get(f"/v1/operations/{operation['id']}"))
    if as_json:
        print_json([operation for _, operation in results])
    else:
        _print(results, describe, no_wait=no_wait)
    _raise_first(errors)


def _print(results: list[tuple[str, dict[str, Any]]], describe: Describe, *, no_wait: bool) -> None:
    for name, operation in results:
        if no_wait:
            click.echo(operation["id"])
        elif operation["state"] == "done":
            click.echo(f"{name} {describe(operation)}")


def _raise_first(errors: list[Any]) -> None:
    for error in errors[1:]:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    if errors:
        raise errors[0]


def action_options(function: Command) -> Command:
    """The argument and the options that every action has."""
    argument = click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_vm)
    return argument(no_wait_option(json_option(function)))


@click.command()
@action_options
def start(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Start VMs."""
    act(names, "start", no_wait=no_wait, as_json=as_json)


@click.command()
@action_options
def pause(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Hold VMs' processors; their memory stays."""
    act(names, "pause", no_wait=no_wait, as_json=as_json)


@click.command()
@action_options
def resume(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Let paused VMs run on."""
    act(names, "resume", no_wait=no_wait, as_json=as_json)


@click.command()
@action_options
def reset(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Press VMs' reset buttons: their guests begin again, unasked."""
    act(names, "reset", no_wait=no_wait, as_json=as_json)


@click.command()
@action_options
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds the guest may take.")
def shutdown(names: tuple[str, ...], timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Press VMs' power buttons and wait until their guests have shut down."""
    act(names, "shutdown", no_wait=no_wait, as_json=as_json, document={"timeout_s": timeout_s})


@click.command()
@action_options
def stop(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Pull VMs' plugs: what a guest has not written to its disks is lost."""
    act(names, "stop", no_wait=no_wait, as_json=as_json)
