"""Disk images of formats other than raw: what their files say, and the processes that read and write them."""
