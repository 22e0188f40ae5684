"""``python -m choreo.cli`` is ``choreo``."""

from choreo.cli import main

if __name__ == "__main__":
    main()
