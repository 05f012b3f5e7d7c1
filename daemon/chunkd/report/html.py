"""HTML as a tree of elements. Its content is escaped because it never was markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

from chunkd.figures import words

Child = str | Element


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """An element with these children. Its text and attributes are escaped as `words.shown` does.

    If an attribute's name is a word of Python's, it ends in an underscore here: `class_`.
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): words.shown(said) for name, said in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + words.shown(child)
        else:
            last.tail = (last.tail or "") + words.shown(child)
    return made


def table(names: Sequence[str], rows: Iterable[Sequence[Child]]) -> Element:
    """A table whose first column names its rows."""
    head = element("tr", *(element("th", name, scope="col") for name in names))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    return element("table", element("thead", head), element("tbody", *body))


def pair(plot: Element, beside: Element) -> Element:
    """A plot with a table beside it."""
    return element("div", element("figure", plot), element("div", beside, class_="table"), class_="pair")


def document(head: Sequence[Element], body: Sequence[Element], style: str) -> str:
    """A whole page. `style` is written unescaped, because it is our own."""
    sheet = Element("style")
    sheet.text = style
    root = element("html", element("head", *head, sheet), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{tostring(root, encoding='unicode', method='html')}\n"
