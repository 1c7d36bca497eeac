"""The client of duovisord's REST API; see README.md for its law."""
