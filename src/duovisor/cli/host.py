"""``duovisor host``: what this machine has, and which designs it can run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.output import json_option, print_result

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hardware.check import DesignVerdict
    from duovisor.hardware.host import Host

UNSUITABLE = 5  # this host cannot, as in exit_codes


@click.group()
def command() -> None:
    """Show what this host has and which designs it can run."""


@command.command()
@json_option
def show(as_json: bool) -> None:
    """List processors, memory, devices, kernel and QEMU."""
    from duovisor.cli.host_text import print_host
    from duovisor.hardware.host import read_host

    host, capabilities = read_host(), _read_capabilities(refresh=False)
    document = build_host_document(host, capabilities)
    print_result(document, as_json, lambda: print_host(host, capabilities))


@command.command()
@json_option
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Say for each design whether this host can run it, and why.

    Probes anew, whatever was remembered. Exit code 5 when no design can run.
    """
    from duovisor.cli.host_text import print_verdicts
    from duovisor.hardware.check import Level, check_host
    from duovisor.hardware.host import read_host

    capabilities = _read_capabilities(refresh=True)
    verdicts = check_host(read_host(), capabilities)
    document = build_check_document(verdicts, capabilities)
    print_result(document, as_json, lambda: print_verdicts(verdicts))
    if all(verdict.level is Level.NO for verdict in verdicts):
        ctx.exit(UNSUITABLE)


def _read_capabilities(*, refresh: bool) -> HostCapabilities:
    from duovisor.directories import find_directories
    from duovisor.hardware.capabilities import read_capabilities

    return read_capabilities(find_directories().cache, refresh=refresh)


def build_host_document(host: Host, capabilities: HostCapabilities) -> dict[str, Any]:
    """What ``host show --json`` prints."""
    return {**asdict(host), "capabilities": asdict(capabilities)}


def build_check_document(
    verdicts: tuple[DesignVerdict, ...], capabilities: HostCapabilities
) -> dict[str, Any]:
    """What ``host check --json`` prints."""
    from duovisor.hardware.accelerator import decide_accelerator
    from duovisor.spec.vm import Accelerator

    decision = decide_accelerator(Accelerator.AUTO, capabilities.kvm)
    return {
        "accelerator": decision.accelerator,
        "accelerator_reason": decision.reason,
        "designs": {
            verdict.design: {
                "verdict": verdict.level,
                "findings": [asdict(finding) for finding in verdict.findings],
            }
            for verdict in verdicts
        },
    }
