"""duovisord: the service that owns the VMs of a host (see README.md)."""
