"""A driver of a user's own: the text of one Python file, which a partition runs after it was confined.

Nothing of it runs anywhere else. Whatever it does wrong becomes one line that names the file and the line.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import traceback
from types import ModuleType

from duovisor.channel.device import VirtioDevice
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.options import build_disk, parse_block_options
from duovisor.controlling.drivers.storage_device import StorageDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODULE = "driver"  # the name under which its classes and tracebacks know it
MAX_SOURCE_BYTES = 256 * 1024
OWN_WORDS = 3


class OwnDriverOptions:
    """``name`` is the file's, ``device_id`` what QEMU was told; ``options`` are the class's arguments."""

    __slots__ = ("device_id", "name", "options")

    def __init__(self, name: str, device_id: int, options: dict[str, Any]) -> None:
        self.name = name
        self.device_id = device_id
        self.options = options


def parse_own_words(words: list[str]) -> OwnDriverOptions:
    """``NAME DEVICE_ID OPTIONS``, the last one in JSON; raises ``DriverError``."""
    try:
        name, device_id, options = words
        parsed = OwnDriverOptions(name, int(device_id), json.loads(options))
    except ValueError as error:
        raise DriverError("a driver of one's own is given as NAME DEVICE_ID OPTIONS") from error
    if not isinstance(parsed.options, dict):
        raise DriverError("the options of a driver are no JSON object")
    return parsed


def create_own_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """The device that the file behind the descriptor ``source`` defines. Raises ``DriverError``."""
    wanted = parse_own_words(words)
    return _check_type(make_device(load_class(wanted, descriptors), wanted), wanted)


def create_own_disk(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """The disk that the file defines, on an ``image`` if there is one. Raises ``DriverError``.

    The words of the storage driver come before the driver's own.
    """
    options, wanted = parse_block_options(words[:-OWN_WORDS]), parse_own_words(words[-OWN_WORDS:])
    kind = load_class(wanted, descriptors)
    if not issubclass(kind, StorageDevice):
        raise DriverError(f"{wanted.name}: {kind.__name__} is no StorageDevice, from which a disk derives")
    image = None
    if "image" in descriptors:
        image = open_image(descriptors["image"], read_only=options.read_only, direct=options.direct)
    return _check_type(make_device(kind, wanted, build_disk(options, image)), wanted)


def load_class(wanted: OwnDriverOptions, descriptors: dict[str, int]) -> type[VirtioDevice]:
    """The class in the file behind the descriptor ``source``. Raises ``DriverError``."""
    if "source" not in descriptors:
        raise DriverError("the descriptor source is missing")
    source = os.pread(descriptors["source"], MAX_SOURCE_BYTES + 1, 0)
    return find_class(run_source(source, wanted.name), wanted.name)


def _check_type(made: VirtioDevice, wanted: OwnDriverOptions) -> VirtioDevice:
    if made.device_id != wanted.device_id:
        raise DriverError(
            f"{wanted.name}: the device has type {made.device_id}, but its file says {wanted.device_id}"
        )
    return made


def run_source(source: bytes, name: str) -> ModuleType:
    """Run the text of a driver as a module of its own. Raises ``DriverError``."""
    module = ModuleType(MODULE)
    module.__file__ = name
    try:
        text = source.decode()
        linecache.cache[name] = (len(source), None, text.splitlines(keepends=True), name)
        sys.modules[MODULE] = module  # dataclasses and enums look there
        exec(compile(text, name, "exec"), module.__dict__)
    except ModuleNotFoundError as error:
        raise DriverError(
            f"{describe_place(error, name)}: there is no module {error.name} in a partition",
            remedy="docs/write-a-driver.md lists what can be imported",
        ) from error
    except (Exception, SystemExit) as error:
        raise DriverError(f"{describe_place(error, name)}: {describe_error(error)}") from error
    return module


def find_class(module: ModuleType, name: str) -> type[VirtioDevice]:
    """The one device class that a driver defines, not counting those that others derive from."""
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, VirtioDevice) and each.__module__ == MODULE
    ]
    last = list(dict.fromkeys(c for c in found if not any(o is not c and issubclass(o, c) for o in found)))
    if len(last) != 1:
        what = " and ".join(each.__name__ for each in last) or "no class"
        raise DriverError(f"{name} defines {what}; it must define one class derived from VirtioDevice")
    return last[0]


def make_device(kind: type[VirtioDevice], wanted: OwnDriverOptions, *arguments: object) -> VirtioDevice:
    """An object of the class, with the user's options. Raises ``DriverError``."""
    try:
        return kind(*arguments, **wanted.options)
    except DriverError:
        raise
    except (Exception, SystemExit) as error:
        raise DriverError(f"{describe_place(error, wanted.name)}: {describe_error(error)}") from error


def describe_place(error: BaseException, name: str) -> str:
    """``FILE:LINE`` of the last step in the driver's own text, or the file alone."""
    if isinstance(error, SyntaxError):
        return f"{name}:{error.lineno}"
    steps = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == name]
    return f"{name}:{steps[-1]}" if steps else name


def describe_error(error: BaseException) -> str:
    """An error in one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
