"""Media of CD-ROM drives: who reads an image for a VMM that must not."""
