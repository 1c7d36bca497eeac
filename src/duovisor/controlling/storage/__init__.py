"""Pools and the volumes in them: what VMs' disks lie on when they are named rather than pointed at."""
