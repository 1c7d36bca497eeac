"""duovisor: server virtualization over KVM/QEMU in both classic hypervisor designs.

This module stays empty of imports: driver partitions import it, and their start-up time is
a guest-visible pause.
"""

__version__ = "0.1.0"
