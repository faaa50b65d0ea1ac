"""Give a flat mask the light and shade of a material."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Field = NDArray[np.float32]

LIGHT = np.array([-0.42, -0.58, 0.70], np.float32)
LIGHT /= np.linalg.norm(LIGHT)
HALF = LIGHT + np.array([0, 0, 1], np.float32)
HALF /= np.linalg.norm(HALF)
FLAT = float(LIGHT[2])  # the light that a surface facing the viewer gets


@dataclass(frozen=True)
class Material:
    """How a surface takes the light."""

    relief: float  # how steep the edges fall off
    gloss: float
    shininess: float
    grain: float  # amplitude of fine noise
    folds: float  # amplitude of broad noise: creases
    sheen: float = 0.0  # bands of a mirrored room


MATERIALS = {
    "fabric": Material(1.5, 0.02, 6, 0.050, 0.22),
    "knit": Material(1.7, 0.02, 6, 0.075, 0.15),
    "upholstery": Material(1.6, 0.02, 6, 0.045, 0.06),
    "leather": Material(1.9, 0.30, 16, 0.025, 0.10),
    "rubber": Material(1.4, 0.08, 10, 0.020, 0.0),
    "plastic": Material(1.8, 0.45, 30, 0.008, 0.0),
    "ceramic": Material(1.8, 0.50, 34, 0.008, 0.0),
    "metal": Material(2.2, 0.60, 20, 0.012, 0.0, 0.20),
    "glass": Material(1.5, 0.70, 40, 0.004, 0.0, 0.06),
    "wood": Material(1.5, 0.12, 12, 0.040, 0.0),
    "flat": Material(0.0, 0.0, 1, 0.015, 0.0),
}


@dataclass(frozen=True)
class Light:
    """What a surface does to its colour: times `diffuse`, plus `specular` (0-1)."""

    diffuse: Field
    specular: Field


def shade(mask: Image.Image, depth_px: float, material: Material, noise: Field) -> Light:
    """Light a mask whose blur serves as height; `noise` has its shape, mean 0, deviation 1."""
    height, width = noise.shape
    # Shade is smooth, so it is computed on fewer pixels: the deeper the curve, the fewer.
    step = int(np.clip(depth_px / 5, 1, 6))
    small = mask.reduce(step) if step > 1 else mask
    radius = max(depth_px / step, 0.8)
    form = _blurred(small, radius)
    bevel = _blurred(small, max(radius / 4, 0.6))
    y1, x1 = np.gradient(form)
    y2, x2 = np.gradient(bevel)
    slope = np.float32(material.relief * 1.25 * radius)
    fine = np.float32(material.relief * 0.22 * max(radius / 4, 0.6))
    dx, dy = x1 * slope + x2 * fine, y1 * slope + y2 * fine
    if material.folds:
        ys = (np.arange(form.shape[0]) * step).clip(0, height - 1)
        xs = (np.arange(form.shape[1]) * step).clip(0, width - 1)
        rough = _hills(noise[ys][:, xs], max(depth_px * 0.8 / step, 1.5))
        fy, fx = np.gradient(rough)
        crease = np.float32(material.folds * min(1.0, depth_px / 28))  # a lace has no creases
        dx += fx * crease
        dy += fy * crease
    norm = 1 / np.sqrt(dx * dx + dy * dy + 1)
    # Height rises inwards, so the normal leans against the gradient.
    lit = np.clip((-dx * LIGHT[0] - dy * LIGHT[1] + LIGHT[2]) * norm, 0, 1)
    mirrored = np.clip((-dx * HALF[0] - dy * HALF[1] + HALF[2]) * norm, 0, 1)
    hidden = np.clip(form * 2.2 - 0.9, 0, 1)  # ambient light is scarce at the edge
    diffuse = (0.42 + 0.58 * lit / FLAT) * (0.86 + 0.14 * hidden)
    # Exposed so that the named colour is what most of the surface shows.
    weight = np.asarray(small, np.float32)
    average = float((diffuse * weight).sum() / (weight.sum() + 1))
    diffuse += max(0.0, 0.99 - average) * 0.8
    if material.sheen:
        diffuse += material.sheen * np.sin(dx * 5 + 0.6) * np.cos(dy * 3)
    # What a flat face mirrors is everywhere alike: only the rest is a highlight.
    flat = float(HALF[2]) ** material.shininess
    specular = material.gloss * np.clip(mirrored**material.shininess - flat, 0, 1)
    full = _resized(diffuse, (width, height))
    full += noise * np.float32(material.grain)
    return Light(full, _resized(specular, (width, height)))


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Return a (size, size) field of soft hills, `cells` across, mean 0, deviation 1."""
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return _resized(grid, (size, size), Image.Resampling.BICUBIC)


def _blurred(mask: Image.Image, radius: float) -> Field:
    if radius < 3 or mask.width * mask.height > 40_000:
        quick = np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), np.float32)
        return quick / np.float32(255)
    # Three boxes make a Gaussian; in floats, for the steps of 8 bits would show as dents.
    soft: Field = np.asarray(mask, np.float32) / np.float32(255)
    half = max(1, round(radius))
    for _ in range(3):
        soft = _boxed(_boxed(soft, half).T, half).T
    return soft


def _boxed(field: Field, half: int) -> Field:
    """Average each row over 2 x half + 1 pixels."""
    padded = np.pad(field, ((0, 0), (half + 1, half)), mode="edge")
    total = np.cumsum(padded, axis=1, dtype=np.float32)
    mean: Field = (total[:, 2 * half + 1 :] - total[:, : -2 * half - 1]) / np.float32(2 * half + 1)
    return mean


def _hills(field: Field, cells: float) -> Field:
    """Return the field's hills of about `cells` pixels, deviation 1 x cells (slopes of order 1)."""
    height, width = field.shape
    small = (max(2, int(width / cells)), max(2, int(height / cells)))
    coarse = Image.fromarray(field).resize(small, Image.Resampling.BOX)
    hills = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    spread = float(hills.std()) or 1.0
    return hills / spread * np.float32(cells * 0.45)


def _resized(
    field: Field, size: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> Field:
    if field.shape == size[::-1]:
        return field.astype(np.float32)
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, how)).copy()
