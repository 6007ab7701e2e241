"""What the tests of plots ask of a figure."""

import itertools
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

LONG = "lora:rank=8,alpha=16,target_modules=query,key,value,dense"


def texts(figure: Figure) -> set[str]:
    return {text.get_text().replace("\n", " ") for text in figure.findobj(match=_is_text)}


def _is_text(artist: Artist) -> bool:
    return isinstance(artist, Text) and bool(artist.get_text())


def assert_inside(figure: Figure) -> None:
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02


def assert_apart(labels: Sequence[Text]) -> None:
    """No text covers another by more than a point; the figure must have been drawn."""
    boxes = [Text.get_window_extent(label) for label in labels]
    for one, other in itertools.combinations(boxes, 2):
        common = Bbox.intersection(one, other)
        assert common is None or min(common.width, common.height) <= 1.4
