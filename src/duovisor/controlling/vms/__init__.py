"""The virtual machines of a host by name: what is wanted of each, what runs, and keeping both true."""
