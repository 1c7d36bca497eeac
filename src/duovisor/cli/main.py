"""The ``duovisor`` command: finds the module of the noun that was typed, and turns errors into one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from duovisor import __version__
from duovisor.cli.connection import GlobalOptions
from duovisor.cli.exit_codes import exit_code_of
from duovisor.cli.lazy_group import LazyGroup
from duovisor.errors import DuovisorError

# noun → (module under duovisor.cli, one line for --help); the module is imported only when it is needed
COMMANDS = {
    "demo": ("demo", "Run the same VM in both designs and show the difference."),
    "compare": ("compare", "Measure both designs here and explain the difference."),
    "anatomy": ("anatomy", "Show a VM's three layers: processes, drivers, host access."),
    "host": ("host", "Show what this host has and which designs it can run."),
    "image": ("image", "Build, list and delete guest images."),
    "run": ("run", "Run a virtual machine in the foreground."),
    "vm": ("vm", "Define, run and watch virtual machines."),
    "volume": ("volume", "Make, clone, upload and delete volumes, the disks of VMs."),
    "pool": ("pool", "Make, list and forget pools, the folders of volumes."),
    "network": ("network", "Make, show and delete networks, and lead ports to VMs."),
    "driver": ("driver", "List the drivers that run beside VMs."),
    "disk-key": ("disk_key", "Make keys for encrypted disks."),
    "operation": ("operation", "List, follow and cancel operations."),
    "event": ("event", "List and follow events."),
    "token": ("token", "Make, list and revoke tokens for the HTTPS API."),
    "service": ("service", "Start, stop and look at duovisord."),
}


@click.command(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="duovisor")
@click.option(
    "--debug", is_flag=True, envvar="DUOVISOR_DEBUG", help="Show API calls, and tracebacks of errors."
)
@click.option("--host", metavar="URL", help="The service to use: https://HOST:PORT or unix:///PATH.")
@click.option("--token-file", type=click.Path(path_type=Path), help="The token for it; else DUOVISOR_TOKEN.")
@click.option("--certificate", type=click.Path(path_type=Path), help="A certificate (PEM) to trust for it.")
@click.pass_context
def cli(
    ctx: click.Context, debug: bool, host: str | None, token_file: Path | None, certificate: Path | None
) -> None:
    """Run server VMs in either hypervisor design: monolithic or microkernelized.

    \b
    A first walk:
      duovisor host check                              can this host run both?
      duovisor image build probe                       a small real guest
      duovisor run --image probe --design monolithic   boot it, Ctrl-] leaves
      duovisor vm create --image probe --start         one that stays
      duovisor vm anatomy probe                        what sits where

    Shell completion: eval "$(_DUOVISOR_COMPLETE=bash_source duovisor)" (or zsh_source, fish_source).
    """
    ctx.obj = GlobalOptions(debug, host, token_file, certificate)


def main() -> None:
    """Entry point: run the command and exit with the code of the table in ``exit_codes``."""
    try:
        status = cli.main(prog_name="duovisor", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python would complain at exit
        sys.exit(141)
    except DuovisorError as error:
        if "--debug" in sys.argv or os.environ.get("DUOVISOR_DEBUG"):
            raise
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
        if error.remedy:
            click.echo(f"  try: {error.remedy}", err=True)
        sys.exit(exit_code_of(error))
    sys.exit(status if isinstance(status, int) else 0)
