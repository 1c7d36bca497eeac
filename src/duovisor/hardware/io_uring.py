"""Whether the kernel lets this process use io_uring; sysctl, container filters and age may forbid it."""

from __future__ import annotations

import ctypes
import os

SYS_IO_URING_SETUP = 425  # the same number on every architecture
PARAMS_BYTES = 120  # struct io_uring_params


def kernel_allows_io_uring() -> bool:
    """Make a ring of one entry and close it again; false when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(SYS_IO_URING_SETUP, ctypes.c_uint(1), ctypes.create_string_buffer(PARAMS_BYTES))
    if ring < 0:
        return False
    os.close(ring)
    return True
