"""The hypervisor layer (see README.md)."""
