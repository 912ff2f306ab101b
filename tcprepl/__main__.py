"""``python -m tcprepl`` is the same as ``tcprepl``."""

from tcprepl.cli import main

if __name__ == "__main__":
    main()
