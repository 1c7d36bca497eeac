"""Supervision of drivers: who serves a device, who stands by, and what happens when either ends."""
