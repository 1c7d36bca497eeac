"""Virtio devices as the guest sees them on PCI, and the channel to the drivers that serve them."""
