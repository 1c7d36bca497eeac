"""Networks: the host's side of a VM's network cards, TAPs on the bridges that the host has."""
