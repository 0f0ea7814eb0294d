"""Masks taken from pictures: the templates of MaskTheFace, warped to the face, and pasted flat as IAMGAN's baseline.

The pictures lie in ``templates/`` with their licence (MIT, Aqeel Anwar); each was made smaller, and those that are
mirror images of others were left out.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError
from deocc.occlude.masks import Sheet, cloth_colour, ear_loops, worn
from deocc.occlude.paint import F32, F64, U8, Colour, Draw, Layer, bounds, to_bytes
from deocc.occlude.pose import Face

# Six anchors of each picture in its pixels: upper corner, bridge of the nose, upper corner; lower corner, chin, lower
# corner. The views called "left" look to the viewer's left; the others are mirrored from them.
_SURGICAL = ((11, 49), (150, 11), (286, 49), (13, 163), (148, 240), (285, 163))
_SURGICAL_LEFT = ((16, 14), (68, 4), (201, 14), (18, 118), (104, 184), (219, 133))
_ANCHORS: dict[str, tuple[tuple[float, float], ...]] = {
    "surgical": _SURGICAL,
    "surgical_green": _SURGICAL,
    "surgical_blue": _SURGICAL,
    "n95": ((20, 53), (145, 2), (278, 45), (20, 126), (153, 230), (278, 126)),
    "kn95": ((7, 18), (161, 2), (298, 21), (29, 133), (156, 240), (270, 130)),
    "cloth": ((45, 33), (152, 2), (257, 29), (61, 121), (152, 191), (245, 116)),
    "surgical_left": _SURGICAL_LEFT,
    "surgical_green_left": _SURGICAL_LEFT,
    "surgical_blue_left": _SURGICAL_LEFT,
    "n95_left": ((51, 84), (94, 43), (186, 84), (62, 195), (121, 249), (209, 184)),
    "kn95_left": ((28, 95), (88, 29), (214, 61), (35, 165), (150, 262), (253, 165)),
    "cloth_left": ((27, 35), (63, 6), (198, 41), (42, 127), (92, 182), (203, 101)),
}
NAMES = ("surgical", "surgical_green", "surgical_blue", "n95", "kn95", "cloth")


@cache
def picture(name: str, mirrored: bool, halvings: int) -> U8:
    """A template as uint8 (h, w, 4), colours multiplied by alpha, halved so many times by exact means of 2x2 pixels."""
    if halvings == 0:
        data = resources.files("deocc.occlude").joinpath("templates", f"{name}.png").read_bytes()
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.ndim != 3 or decoded.shape[2] != 4:
            raise InputError(f"the packaged template {name}.png cannot be decoded; reinstall deocc")
        rgba = decoded[:, :: -1 if mirrored else 1, [2, 1, 0, 3]].astype(np.uint16)
        rgba[..., :3] = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
        return np.ascontiguousarray(rgba.astype(np.uint8))
    large = picture(name, mirrored, halvings - 1).astype(np.uint16)
    large = np.pad(large, ((0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0)))
    mean = (large[::2, ::2] + large[1::2, ::2] + large[::2, 1::2] + large[1::2, 1::2] + 2) // 4
    return np.ascontiguousarray(mean.astype(np.uint8))


@cache
def assets_digest() -> bytes:
    """SHA-256 of all packaged pictures, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(_ANCHORS):
        digest.update(resources.files("deocc.occlude").joinpath("templates", f"{name}.png").read_bytes())
    return digest.digest()


def anchors(name: str, mirrored: bool) -> F64:
    """The six anchors (6, 2) of a template at full size."""
    points = np.array(_ANCHORS[name], np.float64)
    if mirrored:
        points = points[[2, 1, 0, 5, 4, 3]]
        points[:, 0] = picture(name, False, 0).shape[1] - 1 - points[:, 0]
    return points


def _warp(face: Face, name: str, mirrored: bool, target: F64, grid_x: F32, grid_y: F32) -> tuple[F32, U8]:
    """Sample a template where its anchors fall on ``target`` (6, 2), in the frame's coordinates.

    Between the anchors, and as far outside them as the picture goes, the map is linear along the three lines from an
    upper to a lower anchor and across between them: continuous, exact at the anchors, and never folded.

    Returns:
        Colour float (h, w, 3), not multiplied by alpha, and alpha uint8 (h, w).
    """
    source = anchors(name, mirrored)
    density = 0.5 * (source[2, 0] - source[0, 0]) / (0.5 * (target[2, 0] - target[0, 0]))
    halvings = 0
    while halvings < 4 and density > 1.5 * face.unit:
        density *= 0.5
        halvings += 1
    pixels = picture(name, mirrored, halvings)
    source = (source + 0.5) / 2**halvings - 0.5
    (lx, ly), (mx, my), (rx, ry), (dx, dy), (ex, ey), (fx, fy) = target.tolist()

    def line(top_x: float, top_y: float, bottom_x: float, bottom_y: float) -> F32:
        return np.float32(top_x) + (grid_y - np.float32(top_y)) * np.float32((bottom_x - top_x) / (bottom_y - top_y))

    middle = line(mx, my, ex, ey)
    right = grid_x > middle
    edge = np.where(right, line(rx, ry, fx, fy), line(lx, ly, dx, dy))
    width = edge - middle
    width = np.where(right, np.maximum(width, np.float32(0.05)), np.minimum(width, np.float32(-0.05)))
    s = np.minimum((grid_x - middle) / width, 3)  # 0 on the middle line, 1 on the side's

    def side(index: int, values: F64) -> NDArray[np.float32]:
        left, right_ = np.float32(values[index]), np.float32(values[index + 2])
        return np.asarray(np.where(right, right_, left))

    def between(index: int, values: F64) -> F32:
        centre = np.float32(values[index + 1])
        return np.asarray(centre + (side(index, values) - centre) * s)

    top = between(0, target[:, 1])
    t = (grid_y - top) / np.maximum(between(3, target[:, 1]) - top, np.float32(0.1))
    place = []
    for axis in (0, 1):
        upper = between(0, source[:, axis])
        place.append(upper + (between(3, source[:, axis]) - upper) * t)
    colour, alpha = _bilinear(pixels, place[0], place[1])
    # Far outside the anchors the map is only an extrapolation; loops on the wider side are the last thing in reach.
    wide_right = target[2, 0] - mx > mx - lx
    reach = np.where(right == wide_right, np.float32(1.8), np.float32(1.3))
    alpha[(s > reach) | (t < -0.4) | (t > 1.4)] = 0
    return colour, alpha


def _bilinear(pixels: U8, x: F32, y: F32) -> tuple[F32, U8]:
    height, width = pixels.shape[:2]
    padded = np.zeros((height + 3, width + 3, 4), np.uint8)  # nothing outside the picture
    padded[1:-2, 1:-2] = pixels
    x32 = (np.clip(x + 1, 0, width + 1) * 32).astype(np.int32)
    y32 = (np.clip(y + 1, 0, height + 1) * 32).astype(np.int32)
    flat = padded.view(np.uint32).ravel()
    corner = (y32 >> 5) * (width + 3) + (x32 >> 5)
    right, down = (x32 & 31)[..., None], (y32 & 31)[..., None]
    shape = (*x.shape, 4)

    def tap(offset: int) -> NDArray[np.int32]:
        return np.asarray(flat.take(corner + offset).view(np.uint8).reshape(shape).astype(np.int32))

    upper = tap(0) * (32 - right) + tap(1) * right
    lower = tap(width + 3) * (32 - right) + tap(width + 4) * right
    rgba = (upper * (32 - down) + lower * down + 512) >> 10
    alpha = rgba[..., 3]
    colour = rgba[..., :3].astype(np.float32) * (255 / np.maximum(alpha, 1).astype(np.float32))[..., None]
    return colour, alpha.astype(np.uint8)


def template(face: Face, draw: Draw, *, fixed: str = "", colour_of_cloth: Colour | None = None) -> Layer:
    """A picture of a mask: the view that fits the head's turn, warped by six anchors, tinted, lit like the face.

    Args:
        face: whose.
        draw: where it is worn, and, unless it is ``fixed``, which picture and in what colour.
        fixed: the one of :data:`NAMES` to use, in its own colour or in ``colour_of_cloth``.
        colour_of_cloth: RGB.
    """
    name = fixed or draw.pick("template", NAMES)
    turned = face.sin_yaw + draw.uniform("view", -0.08, 0.08)
    view, mirrored = ("_left", turned > 0) if abs(turned) > 0.38 else ("", draw.chance("mirrored", 0.5))
    draw.record["view"] = {"": "front", "_left": "right" if mirrored else "left"}[view]
    top, chin = worn(draw, 0.05, 0.4), draw.uniform("chin", 1.82, 2.12)
    half, side = draw.uniform("half_width", 0.86, 1.06), draw.uniform("side_top", 0.42, 0.66)
    low = draw.uniform("side_bottom", 1.15, 1.45)
    left, right = half, half
    if view:
        left, right = (half, 0.3) if mirrored else (0.3, half)
    lift = 0.38 if view else 0.25
    goal = np.array([(-left, side), (0, top), (right, side), (-left, low), (0, chin), (right, low)])
    target = face.unplace(face.project(goal, lift))
    loops = [] if view else ear_loops(face, draw, [(-half, side), (-half, low), (half, side), (half, low)], lift)
    centre = target.mean(axis=0)
    reach = face.place(centre + (target - centre) * (1.7 if view else 1.25, 1.25))
    box = bounds([reach], face.image.shape[:2], 2)
    sheet = Sheet.lay(face, draw, box, lift)
    colour, alpha = _warp(face, f"{name}{view}", mirrored, target, sheet.grid.x + np.float32(face.axis), sheet.grid.y)
    sheet.alpha = alpha
    wanted = colour_of_cloth
    if not fixed and draw.chance("recoloured", 0.3):
        wanted = cloth_colour(draw, "colour")
    if wanted is not None:
        luma = colour[..., 0] * np.float32(0.3) + colour[..., 1] * np.float32(0.59) + colour[..., 2] * np.float32(0.11)
        gain = 1.15 / {"cloth": 45, "surgical_blue": 190, "surgical_green": 150}.get(name, 200)
        colour = luma[..., None] * (np.array(wanted, np.float32) * np.float32(gain))
    elif not fixed:
        gains = [draw.uniform(f"gain_{channel}", 0.88, 1.12) for channel in "rgb"]
        colour *= np.array(gains, np.float32)
    sheet.fill = colour
    sheet.creases(draw.uniform("creases", 0.0, 0.08))
    return sheet.finish(loops, draw.colour("loop_colour", (232, 232, 232), 16))


def keypoint_paste(face: Face, draw: Draw) -> Layer:
    """KP-SYN of the IAMGAN paper: a mask picture resized, turned and put on the lower face as it is."""
    name = draw.pick("template", NAMES)
    source = anchors(name, False)
    scale = 1.62 / (source[4, 1] - source[1, 1])
    target = np.stack([(source[:, 0] - source[1, 0]) * scale, 0.28 + (source[:, 1] - source[1, 1]) * scale], axis=1)
    height, width = picture(name, False, 0).shape[:2]
    reach = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64) - source[1]
    box = bounds([face.place(reach * scale + (0, 0.28))], face.image.shape[:2], 2)
    grid = face.grid(box)
    colour, alpha = _warp(face, name, False, target, grid.x + np.float32(face.axis), grid.y)
    return Layer(box.top, box.left, to_bytes(colour), alpha)
