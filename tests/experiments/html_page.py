"""A page as a parser sees it: elements, what they nest in, what they ask for."""

from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr", "source"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in the order in which they were opened.

    Attributes:
        elements: name and attributes of each, in order.
        text: what is to be read, element by element.
        pictures: the source of each ``<svg>``.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.pictures = [
            f"<svg{part.split('</svg>')[0]}</svg>" for part in source.split("<svg")[1:]
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self) -> str:
        """Return all text, its white space made single spaces."""
        return " ".join(" ".join(self.text).split())

    def parsed_pictures(self) -> list[ElementTree.Element]:
        """Return the pictures as XML, which raises where one is not well-formed."""
        return [ElementTree.fromstring(picture) for picture in self.pictures]
