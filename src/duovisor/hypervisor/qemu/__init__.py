"""QEMU's command line, one module a device family; each function is pure and returns arguments."""
