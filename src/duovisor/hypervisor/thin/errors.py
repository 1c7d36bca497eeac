"""What ends a thin VMM before its guest runs; each is its process's last words."""

from __future__ import annotations

from duovisor.hypervisor.errors import HypervisorError


class KvmError(HypervisorError):
    """KVM cannot do, or refused, what the machine needs."""

    code = "kvm-refused"


class BootImageError(HypervisorError):
    """The kernel, its initial RAM disk or its command line cannot be booted."""

    code = "boot-image"


class ThinConfigError(HypervisorError):
    """The VMM's own configuration, or a saved state, is not one."""

    code = "thin-config"
