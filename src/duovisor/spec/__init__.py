"""What a user asks for (see README.md)."""
