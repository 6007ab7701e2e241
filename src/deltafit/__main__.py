"""The command ``deltafit``, which is also ``python -m deltafit``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is a sentence even while that is still being loaded."""
    try:
        from deltafit.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("deltafit: Stopped.\n")
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
