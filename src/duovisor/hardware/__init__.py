"""The hardware layer (see README.md)."""
