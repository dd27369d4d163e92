"""A picture of a model with rows: globals, plates with what is in them, data, and who depends on whom."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...figures import new_axes
from ...model.rows.relations import Related

# Units of the picture: between layers, half the height of a node, the width of a letter, and space around nodes.
LAYER, HEIGHT, LETTER, SPACE = 1.5, 0.32, 0.085, 0.3
# Space between a node and the box of its plate, the more the more plates lie between, and inches for a unit.
PAD, INCHES = 0.28, 0.9
SHADES = {"global": "white", "row": "white", "data": "0.85"}


class Node(NamedTuple):
    """A site in the picture: its middle, half its width, and its label."""

    x: float
    y: float
    half: float
    label: str


def plot_structure(sites: Sequence[Related], sizes: Mapping[str, int], plate: str) -> Any:
    """Draws globals on top, the plate of the rows below, and data of plates of their own at the bottom; the Figure.

    Args:
        sites: the sites in the order of the model.
        sizes: how many rows each plate has.
        plate: name of the rows' plate.
    """
    layers, ways = _layers(sites, plate)
    nodes = _placed(layers)
    boxes = {name: _box(name, sites, nodes) for name in sizes if any(name in site.plates for site in sites)}
    corners = [*boxes.values(), *((n.x - n.half, n.y - HEIGHT, n.x + n.half, n.y + HEIGHT) for n in nodes.values())]
    low, high = np.min([c[:2] for c in corners], 0) - PAD, np.max([c[2:] for c in corners], 0) + PAD
    ax = new_axes(1, 1, tuple(INCHES * (high - low)))[0, 0]
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.axis("off")
    for name, (left, bottom, right, top) in boxes.items():
        ax.fill([left, right, right, left], [bottom, bottom, top, top], fill=False, ec="C0" if name == plate else "0.5")
        place = {"ha": "right", "va": "bottom", "bbox": {"fc": "white", "ec": "none", "pad": 0.5}, "zorder": 3}
        ax.text(right - 0.08, bottom + 0.06, f"{name}: {sizes[name]:,}", size=8, color="0.3", **place)
    turn = np.linspace(0, 2 * math.pi, 60)
    for site in sites:
        node, shade = nodes[site.name], SHADES[site.kind]
        ax.fill(node.x + node.half * np.cos(turn), node.y + HEIGHT * np.sin(turn), fc=shade, ec="k", zorder=3)
        ax.text(node.x, node.y, node.label, ha="center", va="center", size=9, zorder=4)
    for way in ways:
        _arrow(ax, [nodes[name] for name in way])
    return ax.figure


def _layers(sites: Sequence[Related], plate: str) -> tuple[list[list[Related]], list[list[str]]]:
    """Sites from top to bottom: globals, the rows' plate, data outside of it, each by the longest way to them.

    An arrow over several layers has a place in those between. All arrows are returned too, as names of places.
    """
    blocks = {site.name: 0 if site.kind == "global" else 1 if plate in site.plates else 2 for site in sites}
    depth: dict[str, tuple[int, int]] = {}
    for site in sites:
        above = [depth[name] for name in site.parents if name in depth and blocks[name] == blocks[site.name]]
        depth[site.name] = blocks[site.name], max((own for _, own in above), default=-1) + 1
    keys = sorted({*depth.values()})
    layers = [[site for site in sites if depth[site.name] == key] for key in keys]
    place, ways = {name: keys.index(key) for name, key in depth.items()}, []
    for site in sites:
        for parent in site.parents:
            if parent in place:
                ways.append([parent])
                for number in range(place[parent] + 1, place[site.name]):
                    layers[number].append(
                        Related(f"{parent} to {site.name} at {number}", "way", 0, (ways[-1][-1],), ())
                    )
                    ways[-1].append(layers[number][-1].name)
                ways[-1].append(site.name)
    return layers, ways


def _placed(layers: Iterable[list[Related]]) -> dict[str, Node]:
    """Where each site is: those in the same plates side by side, and below their parents as far as that goes."""
    nodes: dict[str, Node] = {}
    for number, layer in enumerate(layers):
        above = {site.name: np.mean([nodes[name].x for name in site.parents if name in nodes] or [0]) for site in layer}
        mean = {p: np.mean([above[site.name] for site in layer if site.plates == p]) for p in {s.plates for s in layer}}
        order = sorted(layer, key=lambda site: (mean[site.plates], site.plates, above[site.name]))
        labels = [_label(site) for site in order]
        halves = [max(LETTER * len(label) + 0.15, HEIGHT * 1.4) if label else 0.0 for label in labels]
        gaps = [SPACE + PAD * len({*site.plates} ^ {*after.plates}) for site, after in pairwise(order)]
        x = -(2 * sum(halves) + sum(gaps)) / 2
        for site, label, half, gap in zip(order, labels, halves, [*gaps, 0.0], strict=True):
            nodes[site.name] = Node(x + half, -LAYER * number, half, label)
            x += 2 * half + gap
    return nodes


def _label(site: Related) -> str:
    if site.kind == "way":
        return ""
    return f"{site.name} ({site.size})" if site.size > 1 else site.name


def _box(name: str, sites: Sequence[Related], nodes: Mapping[str, Node]) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a plate, around what is in it and the plates inside."""
    inside = [site for site in sites if name in site.plates]
    pad = PAD * max(len(site.plates) - site.plates.index(name) for site in inside)
    found = [nodes[site.name] for site in inside]
    left, right = min(n.x - n.half for n in found), max(n.x + n.half for n in found)
    bottom, top = min(n.y for n in found) - HEIGHT, max(n.y for n in found) + HEIGHT
    return left - pad, bottom - pad, right + pad, top + 0.5 * pad


def _arrow(ax: Any, way: Sequence[Node]) -> None:
    """From the edge of the first node to that of the last one, by the places between."""
    points = np.array([(node.x, node.y) for node in way])
    for end, other in ((0, 1), (-1, -2)):
        step = points[other] - points[end]
        points[end] += step / np.hypot(step[0] / way[end].half, step[1] / HEIGHT)
    ax.plot(*points[:-1].T, color="k", lw=0.8, zorder=2)
    style = {"arrowstyle": "-|>", "color": "k", "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", tuple(points[-1]), tuple(points[-2]), arrowprops=style, zorder=2)
