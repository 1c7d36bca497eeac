"""Snapshots of running VMs: devices, memory and disks of one moment, and back to it."""
