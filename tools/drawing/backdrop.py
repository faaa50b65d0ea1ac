"""Draw what is behind and below a product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.drawing.palette import NAMED, Color
from tools.drawing.shading import Field, smooth_noise

Canvas = NDArray[np.float32]  # (size, size, 3), 0-255
Rgbs = tuple[tuple[int, int, int], ...]

WALLS: Rgbs = (
    *((246, 245, 243), (232, 226, 216), (214, 208, 200), (222, 230, 236), (238, 222, 218)),
    *((218, 228, 214), (196, 204, 210), (150, 158, 164), (126, 138, 130), (92, 100, 112)),
    *((62, 66, 74), (236, 228, 200), (206, 196, 214), (176, 160, 146)),
)
WOODS: Rgbs = (*((206, 170, 126), (150, 106, 70), (226, 208, 182), (108, 82, 64), (186, 180, 172)),)
LAMPLIGHT = np.array([255, 240, 214], np.float32)
MIN_CONTRAST = 75.0  # distance in RGB between the named colour and what is behind it


@dataclass(frozen=True)
class View:
    """What a background must know: its size, the product's colour and where the product stands."""

    size: int
    color: str
    bottom: float  # of the product, 0 (top) to 1
    rng: np.random.Generator

    def grid(self) -> tuple[Field, Field]:
        """Return x and y of every pixel, 0-1."""
        y, x = np.mgrid[0 : self.size, 0 : self.size].astype(np.float32) / np.float32(self.size)
        return x, y

    def paint(self, colors: Rgbs) -> Color:
        """Choose a colour that stands out from the product's."""
        every = np.array(colors, np.float32)
        distance = np.linalg.norm(every - np.array(NAMED[self.color], np.float32), axis=1)
        far = every[distance > MIN_CONTRAST]
        return np.asarray(far[self.rng.integers(len(far))], np.float32)

    def horizon(self) -> float:
        """Choose where the floor ends: above the product's feet."""
        return self.bottom - float(self.rng.uniform(0.05, 0.20))


def plain(view: View) -> Canvas:
    """Return one colour."""
    return np.tile(view.paint(WALLS), (view.size, view.size, 1))


def gradient(view: View) -> Canvas:
    """Return a wall with a spot of light on it."""
    x, y = view.grid()
    spot = np.hypot(x - view.rng.uniform(0.3, 0.6), y - view.rng.uniform(0.2, 0.5))
    return _lit(view.paint(WALLS), 1.07 - 0.30 * spot)


def studio(view: View) -> Canvas:
    """Return a sheet of paper that bends from the floor to the wall."""
    _, y = view.grid()
    rise = y - view.horizon()
    return _lit(view.paint(WALLS), 0.96 + 0.07 / (1 + np.exp(-rise * 22)) - 0.10 * np.abs(rise))


def linen(view: View) -> Canvas:
    """Return a coarse weave."""
    x, y = view.grid()
    n = int(view.rng.integers(40, 70)) * 2 * np.pi
    slub = view.rng.standard_normal(view.size) * 0.015
    weave = 0.97 + 0.035 * np.sin(x * n) * np.sin(y * n) + slub[None, :] + slub[::-1, None]
    return _lit(view.paint(WALLS), weave + 0.02 * smooth_noise(view.rng, view.size, 5))


def tiles(view: View) -> Canvas:
    """Return square tiles."""
    x, y = view.grid()
    n = float(view.rng.uniform(2.5, 4.5))
    from_center = np.maximum(np.abs(x * n % 1 - 0.5), np.abs(y * n % 1 - 0.5))
    joint = np.clip((from_center - 0.475) * 40, 0, 1)
    glaze = 0.015 * smooth_noise(view.rng, view.size, 6)
    return _lit(view.paint(WALLS), 1 - 0.14 * joint + glaze)


def planks(view: View) -> Canvas:
    """Return wooden boards, level or upright."""
    x, y = view.grid()
    n = int(view.rng.integers(3, 7))
    board = np.floor(y * n).astype(int).clip(0, n - 1)
    tone = (1 + 0.06 * view.rng.standard_normal(n))[board]
    wave = smooth_noise(view.rng, view.size, 6)
    rings = np.sin(y * 60 + wave * 1.6 + board * 7 + x * 2) * 0.035
    # The fibre: noise, drawn out along the board.
    fibre = np.repeat(smooth_noise(view.rng, view.size, 40)[:, ::6], 6, axis=1)[:, : view.size]
    joint = np.clip(1 - np.abs((y * n + 0.5) % 1 - 0.5) * view.size / n / 1.3, 0, 1)
    light = tone * (1 + rings + 0.02 * fibre) * (1 - 0.45 * joint)
    return _lit(view.paint(WOODS), light.T if view.rng.random() < 0.5 else light)


def table(view: View) -> Canvas:
    """Return a table before a wall."""
    x, y = view.grid()
    wall = _lit(view.paint(WALLS), 1.02 - 0.12 * np.abs(x - 0.4) - 0.10 * y)
    return _on_table(view, wall, view.horizon())


def bokeh(view: View) -> Canvas:
    """Return a table before a room of blurred lights."""
    x, y = view.grid()
    room = _lit(view.paint(WALLS), 0.82 - 0.10 * np.abs(x - 0.4) - 0.08 * y)
    horizon = view.horizon()
    for _ in range(14):
        center_x, center_y = view.rng.uniform(0, (1, horizon))
        radius, strength = view.rng.uniform((0.03, 0.1), (0.11, 0.3))
        disc = np.clip((radius - np.hypot(x - center_x, y - center_y)) * 60, 0, 1) * strength
        room += (LAMPLIGHT - room) * disc[..., None].astype(np.float32)
    return _on_table(view, room, horizon)


LYING: tuple[Callable[[View], Canvas], ...] = (plain, gradient, studio, planks, linen, tiles)
STANDING: tuple[Callable[[View], Canvas], ...] = (
    *(plain, gradient, studio, planks, table, table, bokeh),
)


def _on_table(view: View, wall: Canvas, horizon: float) -> Canvas:
    _, y = view.grid()
    rings = np.sin(y * 90 + smooth_noise(view.rng, view.size, 5) * 1.5) * 0.012
    top = _lit(view.paint(WOODS + WALLS[:4]), 0.98 + 0.18 * (y - horizon) + rings)
    edge = np.clip((y - np.float32(horizon)) * view.size / 3 + 0.5, 0, 1)[..., None]
    return np.asarray(wall * (1 - edge) + top * edge, np.float32)


def _lit(color: Color, light: NDArray[np.floating]) -> Canvas:
    canvas: Canvas = color * light[..., None].astype(np.float32)
    return canvas
