"""The guest's PCI bus: configuration space, base addresses, MSI-X."""
