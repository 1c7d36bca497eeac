"""``duovisor token``: who may come in over HTTPS."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from duovisor.cli.completion import complete_token
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json, print_result
from duovisor.cli.table import format_state, format_table, format_time

ROLES = ("viewer", "operator", "administrator")
HEADER = ("NAME", "ROLE", "EXPIRES", "STATE", "MADE BY", "MADE")


@click.group()
def command() -> None:
    """Make, list and revoke tokens for the HTTPS API."""


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What it may do.")
@click.option("--days", default=90.0, show_default=True, help="How long it is valid.")
@click.option("--out", type=click.Path(path_type=Path), help="Write it to this file, for its owner alone.")
@json_option
def create(name: str, role: str, days: float, out: Path | None, as_json: bool) -> None:
    """Make a token; it is shown this once and kept nowhere."""
    wanted = {"name": name, "role": role, "expires_in_days": days}
    made = connect().request("POST", "/v1/tokens", wanted).document
    if out is not None:
        out.touch(mode=0o600)
        out.write_text(made.pop("token") + "\n")
    if as_json:
        print_json(made)
    elif out is None:
        click.echo(f"token {name} is valid until {format_time(made['expires_at'])}; keep it:", err=True)
        click.echo(made["token"])
    else:
        click.echo(f"token {name} is in {out}, valid until {format_time(made['expires_at'])}")


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List tokens, without their secrets."""
    tokens = list(connect().list_all("/v1/tokens"))
    rows = [
        (
            token["name"],
            token["role"],
            format_time(token["expires_at"]),
            format_state("ended") if token["expired"] else "valid",
            token["created_by"],
            format_time(token["created_at"]),
        )
        for token in tokens
    ]
    text = format_table(HEADER, rows) if rows else "no tokens; make one with: duovisor token create NAME"
    print_result(tokens, as_json, lambda: click.echo(text))


@command.command()
@click.argument("name", shell_complete=complete_token)
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Revoke a token, at once."""
    connect().request("DELETE", f"/v1/tokens/{quote(name, safe='')}")
    print_result({"revoked": name}, as_json, lambda: click.echo(f"token {name} is revoked"))
