"""The sockets of the service: a Unix one for this host, and one for HTTPS when that is configured."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

from duovisor.controlling.service.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.controlling.service.config import HttpsConfig

SOCKET_NAME = "duovisord.sock"
BACKLOG = 256
MODE_FOR_GROUP = 0o660
MODE_ALONE = 0o600


def make_runtime_folder(folder: Path) -> None:
    """Make the folder of the socket; refuse one in which somebody else could put another socket.

    Raises ``ListenError``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        for each in (folder, folder.parent):
            _check_folder(each)
    except OSError as error:
        raise ListenError(
            f"cannot make the folder {folder}: {error.strerror}", remedy="set DUOVISOR_RUNTIME_DIR"
        ) from error


def _check_folder(folder: Path) -> None:
    status = folder.lstat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.geteuid()) or shared or not stat.S_ISDIR(status.st_mode):
        raise ListenError(
            f"others may write to {folder}, and could take the place of the service's socket",
            remedy="set DUOVISOR_RUNTIME_DIR to a folder of your own",
        )


@contextlib.contextmanager
def open_unix_socket(path: Path, gid: int | None) -> Iterator[socket.socket]:
    """Listen on a Unix socket for its owner and, if there is one, a group; removed on leaving.

    The service holds the store's lock: whatever socket is there, no service of this state folder listens on
    it. Raises ``ListenError`` when that of another state folder does.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(listener):
        mask = os.umask(0o177)  # nobody connects before owner and mode are right
        try:
            listener.bind(str(path))
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)
        try:
            if gid is not None and _give_to_group(path, gid):
                path.chmod(MODE_FOR_GROUP)
            listener.listen(BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _give_to_group(path: Path, gid: int) -> bool:
    try:
        os.chown(path, -1, gid)
    except PermissionError:  # a user's own service, and the user is not in the group
        return False
    return True


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()  # its service was killed
            return
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    raise ListenError(
        f"another service listens on {path}", remedy="stop it, or set DUOVISOR_RUNTIME_DIR and _STATE_DIR"
    )


@contextlib.contextmanager
def open_https_socket(config: HttpsConfig) -> Iterator[socket.socket]:
    """Listen on the configured address and no other. Raises ``ListenError``."""
    family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.address, config.port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {config.address} port {config.port}: {error.strerror}"
            ) from error
        yield listener


def notify_manager(state: str) -> None:
    """Tell systemd, or whoever started the service, how it is: ``READY=1``, ``STOPPING=1``.

    Source: sd_notify(3); nothing happens without ``NOTIFY_SOCKET``.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier, contextlib.suppress(OSError):
        notifier.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        notifier.send(state.encode())
