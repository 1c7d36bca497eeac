"""The channel between VMM and driver: vhost-user, both sides (see README.md)."""
