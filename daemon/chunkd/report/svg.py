"""A plot for the inside of a page, made from the picture that matplotlib writes."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, fromstring

# Placeholder colours that occur nowhere else in a plot, and the names of the page's style sheet that replace them.
COLOURS = {"#010101": "ink", "#020202": "grid", "#030303": "first", "#040404": "second", "#050505": "third"}
INK, GRID, FIRST, SECOND, THIRD = COLOURS


def tidied(svg: str, title: str, said: str) -> Element:
    """The picture in the page's colours and font, rounded to hundredths of a point, with no unused `id`.

    `title` and `said` describe the plot to readers who can't see it.
    """
    for colour, name in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"(\.[0-9]{2})[0-9]+", r"\1", svg)
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    root = fromstring(svg)  # noqa: S314 - matplotlib wrote it, of numbers and our own words
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        # The HTML parser knows SVG without namespaces.
        element.tag, element.tail = element.tag.rpartition("}")[2], None
        found = {name.rpartition("}")[2]: value for name, value in element.items()}
        element.attrib = {name: value for name, value in found.items() if name != "id" or value in referred}
    described = Element("desc")
    described.text = said
    root.insert(0, described)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    return root
