"""Moving a guest's device state from one QEMU to another, also across the border between the designs."""
