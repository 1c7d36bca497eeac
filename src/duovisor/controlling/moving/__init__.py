"""Moving a running VM to another VMM: of the other design, or of a newer program."""
