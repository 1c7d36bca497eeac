"""``duovisord``: runs the service in the foreground, with or without systemd."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import __version__
from duovisor.controlling.service.config import load_config
from duovisor.controlling.service.server import serve
from duovisor.directories import find_directories
from duovisor.error_table import meaning_of
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from duovisor.controlling.service.server import MakeManager


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """What was typed; ends the process for ``--help`` and for what cannot be meant."""
    parser = argparse.ArgumentParser(
        prog="duovisord",
        description="The service that owns the VMs of this host. Ending it leaves the VMs running.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of /etc/duovisor/duovisord.toml")
    parser.add_argument("--version", action="version", version=f"duovisord {__version__}")
    return parser.parse_args(arguments)


def run(make_manager: MakeManager, arguments: list[str] | None = None) -> int:
    """Run the service with a manager until SIGTERM or SIGINT; returns the exit code."""
    options = parse_arguments(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(make_manager, options.config))
    except DuovisorError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  try: {error.remedy}", file=sys.stderr)
        return meaning_of(error.code).exit_code
    return 0


async def _run(make_manager: MakeManager, config_file: Path | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(load_config(config_file), find_directories(), make_manager, stop)


def main() -> None:
    """Entry point of ``duovisord``."""
    from duovisor.controlling.vms.manager import VmManager

    sys.exit(run(VmManager))


if __name__ == "__main__":
    main()
