"""Render the parts of a product to a layer that is transparent around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tools.drawing.palette import Palette
from tools.drawing.part import Part, Points
from tools.drawing.pattern import Pattern, coverage
from tools.drawing.shading import MATERIALS, Field, shade

MATT = 0.05  # what shines less than this shows no highlight
CREAM_LIGHT = np.array([255, 252, 246], np.float32)


@dataclass(frozen=True)
class Figure:
    """A rendered product: premultiplied colour, opacity, and where its main colour shows (0-1)."""

    color: NDArray[np.float32]  # (h, w, 3), 0-255
    alpha: Field
    main: Field


@dataclass(frozen=True)
class Pose:
    """Where the parts go: product units to pixels."""

    scale: float
    rotation: float
    flip: bool
    squeeze: float  # mild perspective: how much narrower the top is
    offset: tuple[float, float] = (0.0, 0.0)

    def place(self, points: Points) -> Points:
        """Return the points in pixels."""
        x = -points[:, 0] if self.flip else points[:, 0]
        y = points[:, 1]
        x = x * (1 + self.squeeze * y)
        sin, cos = np.sin(self.rotation), np.cos(self.rotation)
        turned = np.stack([x * cos - y * sin, x * sin + y * cos], 1)
        placed: Points = turned * self.scale + np.array(self.offset)
        return placed


def fit(parts: Sequence[Part], pose: Pose, side: float, center: tuple[float, float]) -> Pose:
    """Scale and move a pose so that the longer side of the product measures `side` pixels."""
    every = np.vstack([replace(pose, scale=1.0).place(p.outline) for p in parts if not p.inside])
    low, high = every.min(0), every.max(0)
    scale = side / float((high - low).max())
    middle = (low + high) / 2 * scale
    offset = (center[0] - float(middle[0]), center[1] - float(middle[1]))
    return replace(pose, scale=scale, offset=offset)


def render(
    parts: Sequence[Part], pose: Pose, colors: Palette, pattern: Pattern, noise: Field
) -> Figure:
    """Paint the parts in order on a square layer of the noise's size."""
    side = noise.shape[0]
    color = np.zeros((side, side, 3), np.float32)
    alpha = np.zeros((side, side), np.float32)
    main = np.zeros((side, side), np.float32)
    carrier: tuple[Image.Image, int, int] | None = None
    for part in parts:
        outline = pose.place(part.outline)
        pad = 3 + int(part.soft * pose.scale * 2)
        if not part.inside and part.shadow:
            pad += int(0.03 * pose.scale)
        left, top = (np.floor(outline.min(0)).astype(int) - pad).clip(0, side - 2)
        right, bottom = (np.ceil(outline.max(0)).astype(int) + pad).clip(2, side)
        if right - left < 2 or bottom - top < 2:
            continue
        window = (slice(top, bottom), slice(left, right))
        mask = _mask(part, pose, outline, (left, top, right, bottom))
        if not part.inside:
            carrier = mask, left, top
        elif carrier is not None:
            body, x, y = carrier
            window_of_body = (left - x, top - y, right - x, bottom - y)
            mask = ImageChops.multiply(mask, body.crop(window_of_body))
        over = np.asarray(mask, np.float32) * np.float32(part.alpha / 255)
        painted = _painted(part, mask, pose, colors, pattern, noise[window], (left, top))
        if part.shadow and not part.inside:
            _cast(color[window], mask, part.shadow, 0.018 * pose.scale)
        # In place: most of the time goes here.
        painted -= color[window]
        painted *= over[..., None]
        color[window] += painted
        alpha[window] += (1 - alpha[window]) * over
        main[window] += ((part.paint == "main") - main[window]) * over
    return Figure(color, alpha, main)


def _mask(
    part: Part, pose: Pose, outline: Points, bounds: tuple[int, int, int, int]
) -> Image.Image:
    left, top, right, bottom = bounds
    mask = Image.new("L", (right - left, bottom - top))
    pen = ImageDraw.Draw(mask)
    pen.polygon((outline - (left, top)).ravel().tolist(), fill=255)
    for hole in part.holes:
        pen.polygon((pose.place(hole) - (left, top)).ravel().tolist(), fill=0)
    if part.soft:
        return mask.filter(ImageFilter.GaussianBlur(part.soft * pose.scale))
    return mask.filter(ImageFilter.BoxBlur(0.6))  # a polygon's edge has steps


def _painted(
    part: Part,
    mask: Image.Image,
    pose: Pose,
    colors: Palette,
    pattern: Pattern,
    noise: Field,
    corner: tuple[int, int],
) -> NDArray[np.float32]:
    """Return the part's colour at every pixel of its window, lit."""
    paint = colors[part.paint]
    if part.paint in ("shade", "light") or part.material == "flat":
        return np.tile(paint * np.float32(part.tone), (*noise.shape, 1))
    surface = np.broadcast_to(paint, (*noise.shape, 3))
    if part.paint == "main" and part.patterned and pattern.name != "plain":
        height, width = noise.shape
        x = (np.arange(width, dtype=np.float32) + corner[0] - pose.offset[0]) / pose.scale
        y = (np.arange(height, dtype=np.float32) + corner[1] - pose.offset[1]) / pose.scale
        xs, ys = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        if part.bend:
            middle, half = xs[0, width // 2], max(float(xs[0, -1] - xs[0, 0]) / 2, 1e-6)
            ys = ys + np.float32(part.bend) * ((xs - middle) / half) ** 2
        angle = pose.rotation + (-part.angle if pose.flip else part.angle)
        second = coverage(pattern, xs, ys, angle, 1.5 / pose.scale)[..., None]
        surface = surface + (colors["accent"] - paint) * second
    material = MATERIALS[part.material]
    light = shade(mask, max(part.depth * pose.scale, 2.0), material, noise)
    lit: NDArray[np.float32] = surface * (light.diffuse * np.float32(part.tone))[..., None]
    if material.gloss > MATT:
        lit += (CREAM_LIGHT - lit) * light.specular[..., None]
    return lit


def _cast(below: NDArray[np.float32], mask: Image.Image, darkness: float, reach: float) -> None:
    """Darken what lies below a part, to the right and down of it: the light is at the top left."""
    moved = ImageChops.offset(mask, round(reach * 0.5), round(reach * 0.8))
    soft = np.asarray(moved.filter(ImageFilter.GaussianBlur(reach)), np.float32)
    below *= (1 - soft * np.float32(darkness / 255))[..., None]
