"""A figure as SVG inside a page: its text is text, its ids are its own, it needs nothing else."""

import io
import re
from contextlib import AbstractContextManager
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def plain_text() -> AbstractContextManager[None]:
    """Return a context in which a "$" in a figure's text is a dollar, not mathematics."""
    return matplotlib.rc_context({"text.parse_math": False})


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return ``figure`` as an ``<svg>`` element.

    Args:
        figure: made under ``plain_text``.
        name: prefix of its ids, which pictures beside it must not share.
        description: what is to be seen, for those who cannot see it.
    """
    file = io.BytesIO()
    # Text stays text: it can be searched and copied. The salt makes the same figure the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for found in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(found)
    for parent in root.iter(f"{{{_SVG}}}defs"):  # a style here would hold for the whole page
        for found in parent.findall(f"{{{_SVG}}}style"):
            parent.remove(found)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    # The view box alone: the page decides how large it is drawn.
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": description, "style": f"--width: {width:.0f}pt"}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")
