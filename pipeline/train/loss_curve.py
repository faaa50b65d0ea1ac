"""Draw the loss curves with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 320, 40
INK, GRID = (40, 40, 40), (225, 225, 225)
COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44))


def draw_curves(curves: Mapping[str, Sequence[float]], steps_between: int) -> Image.Image:
    """Plot each curve's values, one every `steps_between` steps, over the step number."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    top = max((value for values in curves.values() for value in values), default=1.0)
    length = max((len(values) for values in curves.values()), default=0)
    for part in range(5):
        y = HEIGHT - MARGIN - part / 4 * (HEIGHT - 2 * MARGIN)
        pen.line((MARGIN, y, WIDTH - MARGIN, y), GRID)
        pen.text((6, y - 6), f"{top * part / 4:.2f}", INK)
        x = MARGIN + part / 4 * (WIDTH - 2 * MARGIN)
        pen.text((x - 8, HEIGHT - MARGIN + 8), f"{length * steps_between * part // 4}", INK)
    for number, (name, values) in enumerate(curves.items()):
        points = [
            (
                MARGIN + (index + 1) / length * (WIDTH - 2 * MARGIN),
                HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN),
            )
            for index, value in enumerate(values)
        ]
        if len(points) > 1:
            pen.line(points, COLORS[number], 2)
        pen.text((WIDTH - 190, 12 + 16 * number), name, COLORS[number])
    return image.quantize(16)
