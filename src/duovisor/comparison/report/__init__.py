"""From samples to what a person reads: terminal, page, pictures, JSON."""
