"""Disks and network cards that come to a running VM, and go from it, in both designs."""
