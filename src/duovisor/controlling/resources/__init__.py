"""How much of the host the processes of a VM may use, through cgroup v2."""
