"""How a VMM that was started before anybody needed it learns whose it is: ``--birth NUMBER KVM``.

It has imported all there is, has made what all machines have in common of the descriptor of /dev/kvm, and
waits at that socket for one message: the words of its command line, which count the descriptors that come
with them, and who it is to be from now on.
Sources: capabilities(7), prctl(2), capget(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
from struct import pack

BIRTH = "--birth"
MESSAGE_MAX, DESCRIPTORS_MAX = 1 << 20, 250  # SCM_MAX_FD is 253
CAPABILITIES = 64
_PR_SET_NAME, _PR_CAPBSET_DROP = 15, 24
_CAPABILITY_VERSION_3 = 0x20080522


def await_words(birth: int) -> list[str]:
    """The words of this VMM's command line, with the numbers of its descriptors. Raises ``SystemExit``."""
    with socket.socket(fileno=birth) as owner:
        data, descriptors, _, _ = socket.recv_fds(owner, MESSAGE_MAX, DESCRIPTORS_MAX)
    if not data:
        raise SystemExit(0)  # nobody needs it any more
    order = json.loads(data)
    log = descriptors.pop()
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    words: list[str] = order["words"]
    for place, word in enumerate(words):
        if place and words[place - 1] == "--descriptor":
            name, _, number = word.rpartition("=")
            words[place] = f"{name}={descriptors[int(number)]}"
    _become(order["name"], order["uid"], order["gids"], order["private_bytes"])
    return words


def _become(name: str, uid: int | None, gids: list[int], private_bytes: int) -> None:
    """Take on a user's identity, if it is root's, and be left with no capability and no way to one."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes, private_bytes))
    if uid is not None:
        for capability in range(CAPABILITIES):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups(gids)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.capset(pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
