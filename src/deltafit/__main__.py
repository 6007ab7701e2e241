"""``python -m deltafit``."""

from deltafit.cli import main

if __name__ == "__main__":
    main()
