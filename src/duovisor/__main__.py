"""``python -m duovisor``: the same as the ``duovisor`` command."""

from duovisor.cli.main import main

if __name__ == "__main__":
    main()
