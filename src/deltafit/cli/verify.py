"""``deltafit verify``."""

from deltafit.cli.options import Base, Run
from deltafit.cli.running import console, explained


def verify(
    folder: Run,
    model: Base = None,
) -> None:
    """Check that an adapter, its base and its head still give the logits it was saved with.

    Example: deltafit verify runs/imdb
    """
    with explained():
        from deltafit.prediction.location import adapter_folder

        adapter_folder(folder)
        from deltafit.cli.show import show_verified
        from deltafit.prediction.using import verify as run

        show_verified(console(), folder, run(folder, model=model))
