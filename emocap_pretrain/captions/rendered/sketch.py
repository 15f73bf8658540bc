"""Draws in face units on a canvas that is seen through a view."""

from itertools import accumulate

import numpy as np

from emocap_pretrain.captions.rendered.canvas import Canvas, Patch
from emocap_pretrain.captions.rendered.geometry import Points, View, ribbon
from emocap_pretrain.captions.rendered.palette import Colour


class Sketch:
    """The drawing tool of every part of the face. All lengths are in face units; `lift` is that of `View`."""

    def __init__(self, canvas: Canvas, view: View) -> None:
        self.canvas = canvas
        self.view = view

    def cover(
        self,
        *outlines: Points,
        opacity: float = 1.0,
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> Patch | None:
        """Returns the patch that filled outlines cover, blurred by `soft`; None if it is not visible."""
        corners = outlines[0] if len(outlines) == 1 else np.concatenate(outlines)
        ends = list(accumulate(len(outline) for outline in outlines))
        seen = self.view.project(corners, lift)
        patch = self.canvas.cover(seen, ends, opacity=opacity, soft_px=soft * self.view.unit_px)
        return patch if patch is None or within is None else patch.inside(within)

    def fill(
        self,
        *outlines: Points,
        colour: Colour,
        opacity: float = 1.0,
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        if opacity > 0.01:
            self.canvas.paint(self.cover(*outlines, opacity=opacity, soft=soft, lift=lift, within=within), colour)

    def ring(self, outer: Points, inner: Points, *, colour: Colour, lift: float = 0.0) -> None:
        """Paints the area in `outer` that is not in `inner`."""
        rim, hole = self.view.project(outer, lift), self.view.project(inner, lift)
        self.canvas.paint(self.canvas.cover(rim, [len(rim)], hole=hole), colour)

    def strokes(
        self,
        *knots: Points,
        width: float,
        colour: Colour,
        opacity: float = 1.0,
        taper: tuple[float, float] = (0.0, 0.0),
        soft: float = 0.0,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        """Paints brush strokes, thick in the middle, each through as many knots; none is thinner than half a pixel."""
        fade = min(1.0, 2 * width * self.view.unit_px)
        if opacity * fade <= 0.01:
            return
        lines = ribbon(np.array(knots), width / fade, taper)
        self.fill(*lines, colour=colour, opacity=opacity * fade, soft=soft, lift=lift, within=within)

    def glow(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        *,
        colour: Colour,
        opacity: float,
        lift: float = 0.0,
        within: Patch | None = None,
    ) -> None:
        """Paints a soft spot of colour; `rx` and `ry` are Gaussian deviations."""
        if opacity <= 0.01:
            return
        cx, cy = self.view.place(x, y, lift)
        patch = self.canvas.glow(cx, cy, rx * self.view.unit_px, ry * self.view.unit_px, opacity)
        self.canvas.paint(patch if patch is None or within is None else patch.inside(within), colour)
