"""What a driver of a user's own may import: a partition sees no file, so its factory has imported it before.

docs/write-a-driver.md has the list for people.
"""

from __future__ import annotations

import codecs
import importlib

MODULES = (
    "array", "base64", "binascii", "bisect", "calendar", "collections.abc", "configparser", "contextlib",
    "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "difflib", "enum", "errno", "fcntl",
    "fnmatch", "fractions", "functools", "hashlib", "heapq", "hmac", "io", "itertools", "json", "keyword",
    "logging", "math", "mmap", "numbers", "operator", "os", "pprint", "queue", "random", "re", "secrets",
    "select", "signal", "socket", "stat", "statistics", "string", "struct", "sys", "textwrap", "threading",
    "time", "traceback", "types", "typing", "unicodedata", "uuid", "warnings", "weakref", "zlib",
)  # fmt: skip
OURS = (
    "duovisor.channel.backend", "duovisor.channel.chain", "duovisor.channel.device",
    "duovisor.channel.errors", "duovisor.channel.virtqueue",
)  # fmt: skip
ENCODINGS = (
    "ascii", "latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-32", "cp437", "cp1252", "hex", "idna",
)  # fmt: skip


def preload() -> None:
    """Import all of it, in the factory."""
    for name in (*MODULES, *OURS):
        importlib.import_module(name)
    for encoding in ENCODINGS:
        codecs.lookup(encoding)
