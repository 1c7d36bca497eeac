"""What is imported only in some factories: a partition sees no file, so its factory has imported it before.

What a driver of a user's own may import, docs/write-a-driver.md has as a list for people. Encryption is
apart: its package brings OpenSSL along, of which no other driver needs to know.
"""

from __future__ import annotations

import codecs
import importlib
import os
import sys

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
    "duovisor.controlling.drivers.block_protocol", "duovisor.controlling.drivers.storage_device",
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


def preload_encryption(folders: list[str]) -> None:
    """Import the encrypting driver's cipher, whose package lies in ``folders``, and use it once.

    OpenSSL reads its configuration and loads its algorithms when they are first used.
    """
    os.environ["CRYPTOGRAPHY_OPENSSL_NO_LEGACY"] = "1"  # else algorithms of the last century are loaded, too
    sys.path += folders
    xts = importlib.import_module("duovisor.controlling.drivers.xts")
    del sys.path[-len(folders) :]
    xts.Xts(bytes(range(64)), 512).decrypt(bytes(1024), 0)
    xts.Xts(bytes(range(64)), 512).encrypt(bytes(1024), 0)
