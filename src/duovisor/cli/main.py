"""The ``duovisor`` command: finds the module of the noun that was typed, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys

import click

from duovisor import __version__
from duovisor.cli.exit_codes import exit_code_of
from duovisor.errors import DuovisorError

# noun → (module under duovisor.cli, one line for --help); the module is imported only when it is needed
COMMANDS = {
    "demo": ("demo", "Run the same VM in both designs and show the difference."),
    "anatomy": ("anatomy", "Show a VM's three layers: processes, drivers, host access."),
    "host": ("host", "Show what this host has and which designs it can run."),
    "image": ("image", "Build, list and delete guest images."),
    "run": ("run", "Run a virtual machine in the foreground."),
}


class LazyGroup(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"duovisor.cli.{COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="duovisor")
@click.option("--debug", is_flag=True, envvar="DUOVISOR_DEBUG", help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run server VMs in either hypervisor design: monolithic or microkernelized.

    \b
    A first walk:
      duovisor host check                              can this host run both?
      duovisor image build probe                       a small real guest
      duovisor run --image probe --design monolithic   boot it, Ctrl-] leaves
      duovisor anatomy                                 what sits where (from another terminal)

    Shell completion: eval "$(_DUOVISOR_COMPLETE=bash_source duovisor)" (or zsh_source, fish_source).
    """
    ctx.obj = {"debug": debug}


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
