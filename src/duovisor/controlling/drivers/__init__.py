"""Drivers that run in partitions; empty, because its import time is part of a guest-visible pause."""
