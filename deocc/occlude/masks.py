"""Masks drawn from nothing: surgical, N95, KN95, cloth, and scarves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np

from deocc.occlude.paint import (
    F32,
    F64,
    U8,
    Box,
    Colour,
    Draw,
    Layer,
    bounds,
    cover,
    curve,
    disc,
    over,
    ribbon,
    sample,
    soften,
    to_bytes,
)
from deocc.occlude.pose import LUT, RADIUS, Face, Grid, across

Point = tuple[float, float]
_NOTHING: F32 = np.empty(0, np.float32)

WHITE: Colour = (238, 240, 240)
SURGICAL: tuple[tuple[Colour, float], ...] = (
    ((150, 205, 232), 5),  # light blue
    ((95, 175, 225), 3),
    ((165, 222, 212), 4),  # green
    ((110, 200, 175), 2),
    (WHITE, 5),
    ((205, 208, 210), 1.5),
    ((30, 30, 33), 3),
    ((240, 190, 205), 1.5),  # pink
    ((190, 165, 215), 0.8),  # lilac
    ((240, 200, 120), 0.8),  # yellow
)
RESPIRATOR: tuple[tuple[Colour, float], ...] = (
    (WHITE, 9),
    ((215, 215, 208), 2),
    ((140, 150, 158), 1.5),
    ((35, 36, 40), 2.5),
    ((120, 170, 205), 1.2),
    ((130, 150, 70), 0.6),
    ((240, 185, 200), 0.8),
)
CLOTH: tuple[tuple[Colour, float], ...] = (
    ((20, 20, 22), 9),
    ((45, 46, 52), 2),
    ((28, 38, 80), 2.5),  # navy
    ((130, 132, 136), 1.5),
    (WHITE, 2.5),
    ((170, 30, 45), 2),
    ((60, 120, 190), 1.5),
    ((40, 95, 75), 1.5),
    ((215, 170, 60), 1.2),
    ((235, 160, 185), 1.2),
    ((200, 180, 150), 1.2),
    ((100, 60, 140), 1),
)
STRAPS: tuple[tuple[Colour, float], ...] = (
    (WHITE, 6),
    ((30, 30, 30), 2),
    ((235, 205, 60), 1.5),
    ((150, 185, 215), 1.5),
    ((190, 190, 190), 1),
)
PATTERNS = ("plain", "heather", "stripes", "checks", "dots", "floral", "camouflage", "marble", "print")


@cache
def _down() -> F64:
    return np.asarray(np.arange(5 * LUT) / LUT - 1)


def _shifted(points: F64, down: float) -> F64:
    """(u, v) points moved down the face."""
    moved: F64 = points + np.array((0.0, down))
    return moved


def _table(function: Callable[[F64], F64]) -> F32:
    """``function`` of v in [-1, 4) as a table for :func:`_along`."""
    return function(_down()).astype(np.float32)


def cloth_colour(draw: Draw, name: str) -> Colour:
    """A colour that cloth is often made in, or, less often, any colour at all."""
    if draw.chance(f"{name}_rare", 0.3):
        return draw.any_colour(name)
    return _pick_colour(draw, name, CLOTH, 20)


def _along(table: F32, v: F32) -> F32:
    index = np.clip((v + np.float32(1)) * np.float32(LUT), 0, 5 * LUT - 1).astype(np.int32)
    return np.asarray(table.take(index))


def _tent(x: F64, middle: float, width: float) -> F64:
    """1 at ``middle``, 0 from ``width`` away, smooth between."""
    t = np.maximum(1 - np.abs(x - middle) / width, 0)
    return np.asarray(t * t * (3 - 2 * t))


def _pick_colour(draw: Draw, name: str, palette: Sequence[tuple[Colour, float]], spread: int = 14) -> Colour:
    base = draw.pick(f"{name}_base", [colour for colour, _ in palette], [weight for _, weight in palette])
    return draw.colour(name, base, spread * (max(base) + 30) // 285)  # a dark dye shows little hue


@dataclass
class Sheet:
    """A mask under the brush: its part of the image, coverage, colour and shade."""

    face: Face
    draw: Draw
    box: Box
    alpha: U8
    grid: Grid
    fill: F32
    shade: F32
    lift: float

    @classmethod
    def cut(cls, face: Face, draw: Draw, outline: F64, lift: float) -> Sheet:
        """Lay a piece of cloth with this (u, v) outline on the face."""
        polygons = [face.project(outline, lift)]
        if abs(face.sin_yaw) > 0.3:  # the middle stands out past the far edge: cover what shows of it too
            centre = outline.mean(axis=0) * (0.0, 1.0)
            polygons += [face.project(centre + (outline - centre) * (part, 0.97), lift) for part in (0.75, 0.5, 0.25)]
        height, width = face.image.shape[:2]
        sheet = cls.lay(face, draw, bounds(polygons, (height, width), 0.1 * face.unit + 3), lift)
        for polygon in polygons:
            cover(sheet.alpha, sheet.box, polygon)
        return sheet

    @classmethod
    def lay(cls, face: Face, draw: Draw, box: Box, lift: float) -> Sheet:
        """A sheet over a box that covers nothing yet."""
        alpha = np.zeros(box.shape, np.uint8)
        sheet = cls(face, draw, box, alpha, face.grid(box), np.empty((*box.shape, 3), np.float32), _NOTHING, lift)
        sheet.shade = sheet._lamp()
        return sheet

    def _lamp(self) -> F32:
        """Light on the bare cylinder: brightness falls off to the sides, more on the one away from the light."""
        light = self.face.light
        towards = min(0.8, max(-0.8, 0.8 * light.slope + self.draw.uniform("light_from", -0.3, 0.3)))
        ambient = self.draw.uniform("light_ambient", 0.45, 0.85)
        level = light.level * self.draw.uniform("light_level", 0.88, 1.25)
        side, front = across()
        lambert = np.maximum(side * towards + front * sqrt(1 - towards * towards), 0)
        table = (level * (ambient + (1 - ambient) * lambert)).astype(np.float32)
        return np.asarray(table.take(self.grid.index))

    def polygon(self, points: Sequence[Point] | F64) -> F64:
        """(u, v) points -> pixels."""
        return self.face.project(np.asarray(points, np.float64), self.lift)

    def band(self, points: Sequence[Point] | F64, width: float) -> U8:
        """Coverage of a band along (u, v) points; ``width`` in eye distances, at least about a third of a pixel."""
        plane = np.zeros(self.box.shape, np.uint8)
        self.draw_band(plane, points, width)
        return plane

    def draw_band(self, plane: U8, points: Sequence[Point] | F64, width: float) -> None:
        """Like :meth:`band`, into a plane that may hold others."""
        pixels = width * self.face.unit
        value = 255 if pixels >= 0.7 else int(255 * max(0.3, pixels / 0.7))
        cover(plane, self.box, ribbon(self.polygon(points), max(0.7, pixels)), value)

    def darken(self, plane: U8, amount: float) -> None:
        """Multiply the shade by 1 - amount where ``plane`` is 255."""
        self.shade *= 1 - plane * np.float32(amount / 255)

    def creases(self, strength: float) -> None:
        """Folds and dents that no two masks share."""
        offset = self.draw.integer("crease_x", 0, 255), self.draw.integer("crease_y", 0, 255)
        scale = self.draw.uniform("crease_scale", 30, 100)
        skew = self.draw.uniform("crease_skew", -0.6, 0.6)
        stretch = self.draw.uniform("crease_stretch", 0.6, 2.6)
        grid = self.grid
        across_ = (grid.u + grid.v * np.float32(skew)) * np.float32(scale)
        down = grid.v * np.float32(scale * stretch)
        self.shade *= 1 + np.float32(strength) * sample("crease", across_, down, offset)
        self.shade *= 1 + np.float32(0.6 * strength) * sample("smooth", down, across_, offset)

    def finish(self, straps: Sequence[F64] = (), strap_colour: Colour = WHITE, stiff: bool = False) -> Layer:
        """Shade, soften to the photo's sharpness, add loops and the shadow on the skin."""
        face, draw = self.face, self.draw
        rim = soften(self.alpha, max(0.6, 0.045 * face.unit))
        edge = draw.uniform("rim", 0.0, 0.3 if stiff else 0.22)
        self.shade *= np.float32(1 - edge) + rim * np.float32(edge / 255)
        tint = np.array(face.light.tint, np.float32)
        self.fill *= self.shade[..., None] * tint
        alpha = self.alpha
        strap = np.array(strap_colour, np.float32) * tint * np.float32(min(1.0, 0.95 * face.light.level))
        if straps:
            loops = np.zeros(self.box.shape, np.uint8)
            for band in straps:
                cover(loops, self.box, band)
            behind = np.minimum(loops, 255 - alpha)
            over(self.fill, strap, behind)
            alpha = np.maximum(alpha, behind)
        height, width = self.box.shape
        grain = draw.uniform("grain", 0.5, 5.0)
        seed = draw.integer("grain_at", 0, 255)
        rows = np.arange(height, dtype=np.float32)[:, None]
        columns = np.arange(width, dtype=np.float32)[None, :]
        self.fill += (sample("grain", columns, rows, (seed, seed)) * np.float32(grain))[..., None]
        sigma = face.blur * draw.uniform("softness", 0.7, 1.2)
        fill = soften(to_bytes(self.fill), sigma)
        alpha = soften(alpha, 0.6 * sigma)
        fill, alpha = cast_shadow(face, draw, fill, alpha)
        layer = Layer(self.box.top, self.box.left, fill, alpha)
        return self._extend(layer, straps, strap, sigma) if straps else layer

    def _extend(self, layer: Layer, straps: Sequence[F64], colour: F32, sigma: float) -> Layer:
        """Go on with the straps outside the mask's own box."""
        image = self.face.image
        wide = bounds(straps, (image.shape[0], image.shape[1]), 3)
        inner = self.box
        box = Box(
            min(wide.top, inner.top),
            min(wide.left, inner.left),
            max(wide.bottom, inner.bottom),
            max(wide.right, inner.right),
        )
        alpha = np.zeros(box.shape, np.uint8)
        for band in straps:
            cover(alpha, box, band)
        alpha = soften(alpha, 0.6 * sigma)
        fill = np.empty((*box.shape, 3), np.uint8)
        fill[:] = to_bytes(colour.copy())
        area = slice(inner.top - box.top, inner.bottom - box.top), slice(inner.left - box.left, inner.right - box.left)
        fill[area], alpha[area] = layer.fill, layer.alpha
        return Layer(box.top, box.left, fill, alpha)


def cast_shadow(face: Face, draw: Draw, fill: U8, alpha: U8) -> tuple[U8, U8]:
    """Add the shadow that a layer throws on the skin around it: black paint, as opaque as the shadow is dark."""
    strength = draw.uniform("shadow", 0.0, 0.38)
    drop = int(draw.uniform("shadow_drop", -0.04, 0.06) * face.unit)
    spread = soften(alpha, max(0.8, draw.uniform("shadow_spread", 0.03, 0.09) * face.unit))
    if drop:
        spread = np.roll(spread, drop, axis=0)
        spread[: max(0, drop)] = 0
        spread[spread.shape[0] + min(0, drop) :] = 0
    dark = spread.astype(np.int32) * int(strength * 256) >> 8
    opaque = alpha.astype(np.int32)
    both = opaque + ((255 - opaque) * dark + 127) // 255
    weight = (opaque * np.float32(1) / np.maximum(both, 1).astype(np.float32))[..., None]
    return np.rint(fill * weight).astype(np.uint8), both.astype(np.uint8)


def pattern(sheet: Sheet, colours: Sequence[Colour], name: str) -> None:
    """Fill the sheet with cloth: ``colours`` are the ground and two of the pattern."""
    draw, u, v = sheet.draw, sheet.grid.u, sheet.grid.v
    ground, second, third = (np.array(colour, np.float32) for colour in colours)
    sheet.fill[:] = ground
    offset = draw.integer("pattern_x", 0, 255), draw.integer("pattern_y", 0, 255)

    def mix(value: F32, threshold: float, steep: float, colour: F32) -> None:
        weight = np.clip((value - np.float32(threshold)) * np.float32(steep) + np.float32(0.5), 0, 1)
        sheet.fill[:] += (colour - sheet.fill) * weight[..., None]

    def wave(across_: float, down: float) -> F32:
        phase = u * np.float32(across_) + v * np.float32(down)
        return np.abs(phase - np.floor(phase) - np.float32(0.5)) * 2

    if name == "heather":
        mix(sample("grain", u * 60, v * 60, offset), 0.2, 0.8, second)
    elif name == "stripes":
        steep = draw.pick("stripes", (((0, 1)), (1, 0), (0.7, 0.7), (0.7, -0.7)))
        often = draw.uniform("stripes_often", 2.5, 9)
        mix(wave(steep[0] * often, steep[1] * often), draw.uniform("stripes_share", 0.3, 0.75), 5, second)
    elif name == "checks":
        often = draw.uniform("checks_often", 2.5, 7)
        share = draw.uniform("checks_share", 0.4, 0.6)
        mix(wave(often, 0), share, 3, (ground + second) * np.float32(0.5))
        mix(wave(0, often), share, 3, second)
    elif name == "dots":
        often = draw.uniform("dots_often", 2.5, 7)
        mix(wave(often, often * 0.2) + wave(-often * 0.2, often), draw.uniform("dots_share", 1.25, 1.6), 4, second)
    elif name in ("floral", "camouflage", "marble"):
        scale = draw.uniform(
            "pattern_scale", *{"floral": (110, 300), "camouflage": (40, 90), "marble": (40, 110)}[name]
        )
        tile = "crease" if name == "marble" else "blobs"
        mix(sample(tile, u * np.float32(scale), v * np.float32(scale), offset), 0.1, 2.5, second)
        mix(sample(tile, v * np.float32(scale), u * np.float32(1.3 * scale), offset), 0.45, 2.5, third)
        if name == "floral":
            fourth = np.array(draw.any_colour("colour_4"), np.float32)
            mix(sample(tile, u * np.float32(1.6 * scale), v * np.float32(1.9 * scale), offset), 0.6, 2.5, fourth)
    elif name == "print":
        marks(sheet, colours[1])


def marks(sheet: Sheet, colour: Colour, name: str = "print") -> None:
    """A logo, a slogan: a few rows or a clump of short strokes, too small to read."""
    draw = sheet.draw
    x, y = draw.uniform(f"{name}_x", -0.6, 0.5), draw.uniform(f"{name}_y", 0.85, 1.4)
    size = draw.uniform(f"{name}_size", 0.04, 0.2)
    plane = np.zeros(sheet.box.shape, np.uint8)
    for row in range(draw.integer(f"{name}_rows", 1, 3)):
        count = draw.integer(f"{name}_{row}", 2, 7)
        for mark in range(count):
            left = x + (mark + 0.3 * draw.fraction()) * size * 0.9
            top = y + row * size * 1.5
            points = [(left + size * 0.7 * draw.fraction(), top + size * draw.fraction()) for _ in range(4)]
            sheet.draw_band(plane, curve(points, 3), size * 0.22)
    over(sheet.fill, colour, plane)


def weave(sheet: Sheet, strength: float) -> None:
    """The threads of the cloth, or the fibres of the fleece."""
    draw, grid = sheet.draw, sheet.grid
    scale = np.float32(draw.uniform("weave_scale", 25, 110))
    offset = draw.integer("weave_x", 0, 255), draw.integer("weave_y", 0, 255)
    sheet.shade *= 1 + np.float32(strength) * sample("grain", grid.u * scale, grid.v * scale, offset)


def valve(sheet: Sheet, colour: Colour) -> None:
    """An exhalation valve: a round plastic lid beside or below the tip of the nose."""
    draw = sheet.draw
    x = draw.pick("valve_side", (-1, 0, 1)) * draw.uniform("valve_x", 0.25, 0.45)
    y = draw.uniform("valve_y", 0.95, 1.3)
    size = draw.uniform("valve_size", 0.11, 0.2)
    for part, shade in ((1.15, 0.6), (1.0, 1.0), (0.75, 0.8), (0.66, 1.08), (0.2, 0.85)):
        lid = sheet.polygon(disc((x, y), part * size, part * size))
        box = bounds([lid], sheet.face.image.shape[:2], 2)
        top, left = max(box.top, sheet.box.top), max(box.left, sheet.box.left)
        bottom, right = min(box.bottom, sheet.box.bottom), min(box.right, sheet.box.right)
        if top >= bottom or left >= right:
            return
        plane = np.zeros((bottom - top, right - left), np.uint8)
        cover(plane, Box(top, left, bottom, right), lid)
        down, across_ = sheet.box.top, sheet.box.left
        part_of = sheet.fill[top - down : bottom - down, left - across_ : right - across_]
        over(part_of, [channel * shade for channel in colour], plane)


def ear_loops(face: Face, draw: Draw, corners: Sequence[Point], lift: float) -> list[F64]:
    """Thin bands from the corners (left top, left bottom, right top, right bottom) to the ears, as pixel polygons."""
    width = draw.uniform("loop_width", 0.02, 0.055) * face.unit
    ear_top, ear_bottom = draw.uniform("ear_top", 0.12, 0.42), draw.uniform("ear_bottom", 0.6, 0.95)
    sag = draw.uniform("loop_sag", -0.05, 0.08)
    bands = []
    for number, (u, v) in enumerate(corners):
        side = -1.0 if number < 2 else 1.0
        if -side * face.sin_yaw < -0.5:  # this ear has turned away
            continue
        ear = (side * RADIUS * 0.99, ear_top if number % 2 == 0 else ear_bottom)
        middle = (0.5 * (u + ear[0]), 0.5 * (v + ear[1]) + sag)
        bands.append(ribbon(face.project(curve([(u * 0.97, v), middle, ear], 4), lift), max(0.8, width)))
    return bands


def head_straps(face: Face, draw: Draw, corners: Sequence[Point], lift: float) -> list[F64]:
    """Bands from the corners to above and below the ears, round the back of the head."""
    width = draw.uniform("strap_width", 0.03, 0.085) * face.unit
    ends = draw.uniform("strap_top", -0.15, 0.4), draw.uniform("strap_bottom", 0.9, 1.3)
    bands = []
    for number, (u, v) in enumerate(corners):
        side = -1.0 if number < 2 else 1.0
        if -side * face.sin_yaw < -0.5:
            continue
        end = (side * RADIUS * 0.99, ends[number % 2])
        bands.append(ribbon(face.project(np.array([(u, v), end]), lift), max(1.0, width)))
    return bands


def worn(draw: Draw, low: float, high: float) -> float:
    """v of a mask's top edge on the bridge of the nose; now and then it has slipped below the nose."""
    if draw.chance("below_nose", 0.04):
        return draw.uniform("top", 0.72, 0.86)
    return draw.uniform("top", low, high)


def surgical(face: Face, draw: Draw) -> Layer:
    """A pleated sheet with hems, nose wire and ear loops."""
    top = worn(draw, 0.06, 0.42)
    half = draw.uniform("half_width", 0.84, 1.08)
    side_top = max(top + 0.02, draw.uniform("side_top", 0.38, 0.68))
    side_bottom = draw.uniform("side_bottom", 1.12, 1.5)
    chin = draw.uniform("chin", 1.8, 2.15)
    flat = draw.uniform("chin_width", 0.3, 0.55)
    shift, lift = draw.uniform("shift", -0.05, 0.05), draw.uniform("lift", 0.1, 0.35)
    drop = draw.uniform("skew", -0.05, 0.05)
    pinch = draw.uniform("pinch", 0.0, 0.06)
    shoulder = top + (side_top - top) * draw.uniform("shoulder", 0.35, 0.75)
    upper = curve(
        [
            (-half, side_top + drop),
            (-0.5 * half, shoulder),
            (-0.14, top + 0.03),
            (shift, top),
            (0.14, top + 0.03),
            (0.5 * half, shoulder),
            (half, side_top - drop),
        ]
    )
    lower = curve(
        [
            (half - pinch, side_bottom - drop),
            (flat + 0.25, 0.5 * (side_bottom + chin) + 0.07),
            (flat, chin - 0.05),
            (shift, chin),
            (-flat, chin - 0.05),
            (-flat - 0.25, 0.5 * (side_bottom + chin) + 0.07),
            (-half + pinch, side_bottom + drop),
        ]
    )
    corners = [tuple(point) for point in (upper[0], lower[-1], upper[-1], lower[0])]
    if draw.chance("tied", 0.12):
        straps = head_straps(face, draw, corners, lift)
    else:
        straps = ear_loops(face, draw, corners, lift)
    sheet = Sheet.cut(face, draw, np.concatenate([upper, lower]), lift)
    colour = _pick_colour(draw, "colour", SURGICAL)
    sheet.fill[:] = colour
    # Pleats open towards the middle and meet at the sides.
    middle = draw.uniform("pleat_middle", 0.95, 1.15)
    spread = draw.uniform("pleat_spread", 0.1, 0.6)
    count, depth = draw.integer("pleats", 2, 4), draw.uniform("pleat_depth", 0.05, 0.3)
    step, down = draw.uniform("pleat_step", 0.2, 0.32), draw.chance("pleats_down", 0.75)
    chin_dark = draw.uniform("chin_dark", 0.05, 0.45)

    def folds(v: F64) -> F64:
        value = 1 - chin_dark * np.clip((v - 1.25) / 0.8, 0, 1) ** 2
        value = value * (1 + 0.08 * _tent(v, 0.75, 0.45))
        for pleat in range(count):
            at = middle + (pleat - 0.5 * (count - 1)) * step
            away = (v - at) if down else (at - v)
            ramp = np.where(away >= 0, np.maximum(1 - away / (0.75 * step), 0), 0)
            value = value * (1 - depth * ramp * ramp) * (1 + 0.4 * depth * _tent(away, -0.05, 0.06))
        return value

    grid = sheet.grid
    open_ = grid.v - np.float32(middle)
    open_ *= 1 + np.float32(spread) * np.minimum(grid.u * grid.u, 1)
    sheet.shade *= _along(_table(folds), open_ + np.float32(middle))
    sheet.creases(draw.uniform("creases", 0.02, 0.2))
    weave(sheet, draw.uniform("weave", 0.0, 0.05))
    hem = draw.uniform("hem", 0.05, 0.1)
    if draw.chance("hem_seen", 0.7):
        contrast = draw.uniform("hem_contrast", 0.05, 0.25)
        sheet.darken(sheet.band(_shifted(upper, hem), 0.018), contrast)
        sheet.darken(sheet.band(_shifted(lower, -hem), 0.018), contrast)
    if draw.chance("wire", 0.5):
        bent = _shifted(upper[len(upper) // 4 : -len(upper) // 4], 0.6 * hem)
        sheet.darken(sheet.band(_shifted(bent, 0.05), 0.05), draw.uniform("wire_dark", 0.03, 0.2))
        over(sheet.fill, (255, 255, 255), sheet.band(bent, 0.04), draw.uniform("wire_bright", 0.0, 0.3))
    if draw.chance("side_hem", 0.5):
        for first, last in ((upper[0], lower[-1]), (upper[-1], lower[0])):
            inner = np.stack([first, last]) * (0.93, 1)
            sheet.darken(sheet.band(inner, 0.03), draw.uniform("side_hem_dark", 0.05, 0.2))
    if draw.chance("printed", 0.05):
        marks(sheet, draw.any_colour("print_colour"))
    loop = colour if draw.chance("loops_match", 0.25) else draw.colour("loop_colour", WHITE, 12)
    return sheet.finish(straps, loop)


def n95(face: Face, draw: Draw) -> Layer:
    """A stiff cup with a rim, embossed lines, two straps, and at times a valve and a label."""
    top = worn(draw, 0.02, 0.32)
    half, chin = draw.uniform("half_width", 0.8, 1.02), draw.uniform("chin", 1.7, 1.98)
    side = draw.uniform("side", 0.9, 1.2)
    lift = draw.uniform("lift", 0.25, 0.5)
    outline = curve(
        [
            (0, top),
            (0.25, top + 0.07),
            (0.76 * half, top + 0.36),
            (half, side),
            (0.87 * half, 0.5 * (side + chin) + 0.04),
            (0.48 * half, chin - 0.05),
            (0, chin),
            (-0.48 * half, chin - 0.05),
            (-0.87 * half, 0.5 * (side + chin) + 0.04),
            (-half, side),
            (-0.76 * half, top + 0.36),
            (-0.25, top + 0.07),
            (0, top),
        ]
    )
    corners = [(-0.85 * half, 0.75), (-0.85 * half, 1.35), (0.85 * half, 0.75), (0.85 * half, 1.35)]
    straps = head_straps(face, draw, corners, lift)
    sheet = Sheet.cut(face, draw, outline, lift)
    colour = _pick_colour(draw, "colour", RESPIRATOR)
    sheet.fill[:] = colour
    grid = sheet.grid
    centre, tall = draw.uniform("cup", 0.85, 1.15), 0.5 * (chin - top)
    out = (grid.u * np.float32(1 / half)) ** 2 + ((grid.v - np.float32(centre)) * np.float32(1 / tall)) ** 2
    sheet.shade *= 1 - np.float32(draw.uniform("cup_dark", 0.08, 0.4)) * np.minimum(out, 1)
    sheet.shade *= 1 + np.float32(draw.uniform("cup_light", 0.0, 0.12)) * (grid.y < np.float32(centre))
    if draw.chance("embossed", 0.5):
        for line in range(draw.integer("lines", 1, 3)):
            v = 0.75 + 0.33 * line + draw.uniform(f"line_{line}", -0.08, 0.08)
            bow = curve([(-0.8 * half, v + 0.1), (0, v), (0.8 * half, v + 0.1)], 5)
            sheet.darken(sheet.band(bow, 0.025), draw.uniform(f"line_dark_{line}", 0.08, 0.3))
    if draw.chance("rim_seen", 0.6):
        centre_point = np.array([0, 0.5 * (top + chin)])
        inner = centre_point + (outline - centre_point) * 0.93
        sheet.darken(sheet.band(inner, 0.02), draw.uniform("rim_dark", 0.08, 0.3))
    if draw.chance("clip", 0.4):
        clip = curve(
            [(-0.35, top + 0.3), (-0.18, top + 0.13), (0, top + 0.09), (0.18, top + 0.13), (0.35, top + 0.3)], 3
        )
        over(sheet.fill, draw.colour("clip_colour", (150, 150, 155), 40), sheet.band(clip, 0.06), 0.7)
    sheet.creases(draw.uniform("creases", 0.0, 0.07))
    if draw.chance("label", 0.45):
        marks(sheet, draw.colour("label_colour", (60, 60, 70), 40), "label")
    if draw.chance("valve", 0.35):
        valve(sheet, _pick_colour(draw, "valve_colour", RESPIRATOR))
    return sheet.finish(straps, _pick_colour(draw, "strap_colour", STRAPS), stiff=True)


def _folded(face: Face, draw: Draw, *, cloth: bool) -> Layer:
    """A mask with a seam down the middle, flat on both sides of it: KN95 and most cloth masks."""
    top = worn(draw, 0.02, 0.38)
    wrapped = cloth and draw.chance("wrapped", 0.25)  # right round to the ears, no loops to be seen
    half = draw.uniform("half_width", 1.08, RADIUS) if wrapped else draw.uniform("half_width", 0.82, 1.1)
    side_top = max(top + 0.05, draw.uniform("side_top", 0.45, 0.78))
    side_bottom = max(side_top + 0.25, draw.uniform("side_bottom", 1.0, 1.4))
    chin, point = draw.uniform("chin", 1.8, 2.12), draw.uniform("chin_point", 0.0, 0.22)
    shift, lift = draw.uniform("shift", -0.05, 0.05), draw.uniform("lift", 0.15, 0.45)
    hollow = draw.uniform("hollow", -0.06, 0.12)
    drop = draw.uniform("skew", -0.05, 0.05)
    upper = curve(
        [
            (-half, side_top + drop),
            (-0.5 * half, 0.55 * side_top + 0.45 * top + hollow),
            (-0.12, top + 0.04),
            (shift, top),
            (0.12, top + 0.04),
            (0.5 * half, 0.55 * side_top + 0.45 * top + hollow),
            (half, side_top - drop),
        ]
    )
    wing = 0.62 * half, 0.55 * side_bottom + 0.45 * chin + 0.04
    lower = curve(
        [
            (half, side_bottom - drop),
            wing,
            (0.3, chin - point),
            (shift, chin),
            (-0.3, chin - point),
            (-wing[0], wing[1]),
            (-half, side_bottom + drop),
        ]
    )
    corners = [tuple(point) for point in (upper[0], lower[-1], upper[-1], lower[0])]
    straps = [] if wrapped else ear_loops(face, draw, corners, lift)
    sheet = Sheet.cut(face, draw, np.concatenate([upper, lower]), lift)
    if cloth:
        colours = cloth_colour(draw, "colour"), draw.any_colour("colour_2"), draw.any_colour("colour_3")
        name = draw.pick("pattern", PATTERNS, (9, 2, 1, 1, 1, 3.5, 1, 1.5, 2))
        pattern(sheet, colours, name)
    else:
        colours = (_pick_colour(draw, "colour", RESPIRATOR),) * 3
        sheet.fill[:] = colours[0]
    grid = sheet.grid
    # The two halves face to either side: one takes more light than the other.
    steep = draw.uniform("ridge", 0.0, 0.16) * (1 if face.light.slope > 0 else -1)
    away = grid.u - np.float32(shift)
    sheet.shade *= 1 + np.clip(away * np.float32(12), -1, 1) * np.float32(steep)
    chin_dark = draw.uniform("chin_dark", 0.05, 0.5)
    sheet.shade *= _along(
        _table(lambda v: (1 + 0.08 * _tent(v, 0.8, 0.5)) * (1 - chin_dark * np.clip((v - 1.2) / 0.8, 0, 1) ** 2)),
        grid.v,
    )
    if draw.chance("seam", 0.75):
        line = curve([(shift, top), (shift, 0.5 * (top + chin)), (shift, chin)], 4)
        sheet.darken(sheet.band(line, 0.025), draw.uniform("seam_dark", 0.05, 0.35))
    sheet.creases(draw.uniform("creases", 0.02, 0.24 if cloth else 0.12))
    weave(sheet, draw.uniform("weave", 0.0, 0.22 if cloth else 0.06))
    if cloth and draw.chance("piped", 0.25):
        piping, width = draw.any_colour("piping"), draw.uniform("piping_width", 0.04, 0.09)
        over(sheet.fill, piping, sheet.band(_shifted(upper, 0.4 * width), width))
        over(sheet.fill, piping, sheet.band(_shifted(lower, -0.4 * width), width))
    elif draw.chance("hem_seen", 0.5):
        hem, dark = draw.uniform("hem", 0.05, 0.12), draw.uniform("hem_dark", 0.05, 0.25)
        sheet.darken(sheet.band(_shifted(upper, hem), 0.02), dark)
        sheet.darken(sheet.band(_shifted(lower, -hem), 0.02), dark)
    if not cloth and draw.chance("welds", 0.5):
        over(sheet.fill, (120, 120, 120), sheet.band([(-0.35, top + 0.16), (0.35, top + 0.16)], 0.02), 0.4)
    if not cloth and draw.chance("label", 0.35):
        marks(sheet, draw.colour("label_colour", (70, 70, 80), 40), "label")
    if draw.chance("valve", 0.12):
        valve(sheet, _pick_colour(draw, "valve_colour", RESPIRATOR))
    loop = colours[0] if draw.chance("loops_match", 0.6) else draw.colour("loop_colour", WHITE, 15)
    return sheet.finish(straps, loop, stiff=not cloth)


def kn95(face: Face, draw: Draw) -> Layer:
    """A respirator folded down the middle."""
    return _folded(face, draw, cloth=False)


def cloth(face: Face, draw: Draw) -> Layer:
    """A sewn mask of any colour and pattern."""
    return _folded(face, draw, cloth=True)


def scarf(face: Face, draw: Draw) -> Layer:
    """A scarf or bandana: over nose, mouth and neck, in heavy folds."""
    top = draw.uniform("top", 0.15, 0.5)
    side = draw.uniform("side_top", 0.3, 0.9)
    wide, end = draw.uniform("half_width", 1.15, 1.5), draw.uniform("end", 2.3, 3.6)
    point = draw.uniform("point", 0.2, 1.0)
    rough = [draw.uniform(f"edge_{number}", -0.06, 0.06) for number in range(4)]
    outline = np.concatenate(
        [
            curve(
                [
                    (-wide, side + rough[0]),
                    (-0.6, 0.5 * (top + side) + rough[1]),
                    (-0.15, top + 0.03),
                    (0, top),
                    (0.15, top + 0.03),
                    (0.6, 0.5 * (top + side) + rough[2]),
                    (wide, side + rough[3]),
                ]
            ),
            curve(
                [
                    (wide, 2.0),
                    (wide * point, 0.4 * 2.0 + 0.6 * end),
                    (0, end),
                    (-wide * point, 0.4 * 2.0 + 0.6 * end),
                    (-wide, 2.0),
                ]
            ),
        ]
    )
    sheet = Sheet.cut(face, draw, outline, draw.uniform("lift", 0.05, 0.3))
    colours = cloth_colour(draw, "colour"), draw.any_colour("colour_2"), draw.any_colour("colour_3")
    pattern(sheet, colours, draw.pick("pattern", PATTERNS[:8], (5, 3, 2, 2, 1, 3, 1, 2)))
    sheet.creases(draw.uniform("creases", 0.12, 0.4))
    for fold in range(draw.integer("folds", 2, 6)):
        v, tilt = draw.uniform(f"fold_{fold}", 0.6, 2.6), draw.uniform(f"fold_tilt_{fold}", -0.4, 0.4)
        sag = draw.uniform(f"fold_sag_{fold}", 0.0, 0.5)
        line = curve(
            [(-1.1, v - sag - tilt), (-0.4, v - 0.2 * sag - 0.3 * tilt), (0.4, v + 0.3 * tilt), (1.1, v - sag + tilt)],
            4,
        )
        plane = soften(sheet.band(line, draw.uniform(f"fold_width_{fold}", 0.03, 0.12)), 0.03 * face.unit)
        sheet.darken(plane, draw.uniform(f"fold_dark_{fold}", 0.1, 0.45))
    return sheet.finish()
