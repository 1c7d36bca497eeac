"""The command line (see README.md)."""
