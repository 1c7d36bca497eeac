"""The service's store (see README.md); ``interface.py`` is what others program against."""
