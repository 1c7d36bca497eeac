"""The controlling layer (see README.md); empty, because driver partitions import it."""
