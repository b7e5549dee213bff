"""Draws a small data set in VOC's own folder layout, to try the whole suite without a download.

    python tools/make_sample_dataset.py --output_dir data/sample

Every picture is a scene (meadow, coast, street, room, snow, autumn) with one to four objects of the 20 VOC classes.
Scenes and objects are tables of parts. A part is an outline and a paint. Outlines are in units of a hundredth of the
object: x to the right, y down, 100 is the ground. A paint is two colours and the texture that mixes them. draw_parts
draws all parts.

The layout and the void border follow the PASCAL VOC 2012 development kit, sections 4 and 6 (segmentation).
"""
import colorsys
import os
import sys
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from datasets.classes import IGNORE_LABEL, VOC
from utils import ArgumentParser, UserError, non_negative_int, positive_int, run_program, save_image, save_labels

# How difficult the data set is.
COLOUR_JITTER = (7, 7, 7)  # standard deviation between objects: degrees of hue, percent of saturation and of value
SCENE_JITTER = (14, 9, 7)  # the same for scenes; more, so that the ground can have the colours of objects
STRAY_SCENES = 0.3  # share of pictures whose scene is drawn from all scenes, not from the main object's homes
MAIN_SIZE = (0.50, 0.70)  # length of the main object over sqrt(height * width) of the picture
COMPANION_SIZE = (0.36, 0.52)  # the same for the objects behind it
OBJECT_COUNT_ODDS = (0.2, 0.35, 0.3, 0.15)  # of one, two, three and four objects
TILT = 7  # standard deviation in degrees; twice that in the air
WOBBLE = 1.6  # units by which outlines are bent, so that no two cats are alike
NOISE = 6.0  # standard deviation of the pixel noise in grey levels
BLUR = (0.3, 0.7)  # range of the standard deviation of the lens blur in pixels
LIGHT = 0.16  # how much darker one side of the picture may be than its centre

LONG_SIDE, SHORT_SIDE = (160, 201), (120, 161)  # pixels, half-open; sizes differ as they do in VOC
SUPERSAMPLING = 3  # odd, so that one drawn pixel is at the centre of each final pixel
SPLITS = ('train', 'val')


class Paint(NamedTuple):
    """Two colours and their mixture; see paint()."""
    colour: tuple
    second: tuple
    texture: object
    vary: float


class Part(NamedTuple):
    """An outline, float64 [N, 2] in units, and its paint; filled if the width is 0, otherwise a stroke."""
    points: np.ndarray
    closed: bool
    width: float
    paint: Paint


class Thing(NamedTuple):
    """An object of a class: the names of the scenes it is found in, whether it flies, and its Parts, back to front."""
    homes: list
    flies: bool
    parts: list


# ------------------------------------------------------------------------------------------- textures
# A texture is a function of u, v (float32 [H, W], positions in units) and a random generator. It returns the share of
# the paint's second colour, [H, W], float32 in 0..1 or bool.


def plain(u, v, rng):
    """The first colour alone."""
    return np.zeros_like(u)


def ripples(u, v, rng, across, along):
    """Smooth random field of unit variance: random sines, wavelengths about `across` units in u and `along` in v."""
    total = np.zeros_like(u)
    for angle, phase in rng.uniform(0, 2 * np.pi, (6, 2)):
        speed = 2 * np.pi * rng.uniform(0.6, 1.4)
        total += np.sin(u * np.float32(speed * np.cos(angle) / across) + v * np.float32(speed * np.sin(angle) / along)
                        + np.float32(phase))
    return total / np.float32(np.sqrt(3))


def stripes(period, angle=0, share=0.5, wave=0.0):
    """Bands that alternate in the direction `angle` (degrees, 0: along x), bent by `wave` units."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))

    def texture(u, v, rng):
        bend = wave * ripples(u, v, rng, 30, 30) if wave else 0
        return ((u * cos + v * sin + bend) / period % 1 < share).astype(np.float32)
    return texture


def checks(period):
    """Gingham: half the tone where there is one band, the full tone where two cross."""
    along, down = stripes(period), stripes(period, 90)
    return lambda u, v, rng: (along(u, v, rng) + down(u, v, rng)) / 2


def quilt(period):
    """Diamonds between dark seams."""
    def texture(u, v, rng):
        seams = np.minimum(np.abs((u + v) / period % 1 - 0.5), np.abs((u - v) / period % 1 - 0.5))
        return np.clip(1 - seams * 6, 0, 1)
    return texture


def staggered(u, v, period):
    """Position x, y in -0.5..0.5 within cells that are laid like bricks, `period` units wide and high."""
    row = np.floor(v / period)
    return (u / period + row % 2 / 2) % 1 - 0.5, v / period - row - 0.5


def dots(period, radius=0.3):
    """Round dots; `radius` in periods."""
    return lambda u, v, rng: np.hypot(*staggered(u, v, period)) < radius


def scales(period):
    """Rows of scallops, of which the rims are drawn: feathers, wool."""
    def texture(u, v, rng):
        x, y = staggered(u, v, period)
        return np.abs(np.hypot(x, y + 0.5) - 0.75) < 0.11
    return texture


def panes(width, height, frame=0.3):
    """A grid of windows; `frame` is the share of the wall between them."""
    return lambda u, v, rng: (u / width % 1 > frame) & (v / height % 1 > frame)


def blotches(size, cover=0.0):
    """Large patches with sharp edges; the higher `cover`, the fewer."""
    return lambda u, v, rng: ripples(u, v, rng, size, size) > cover


def fur(across, along):
    """Soft strokes of `across` and `along` units in x and y: fur, grass, waves, cloth."""
    return lambda u, v, rng: np.clip(0.5 + 0.35 * ripples(u, v, rng, across, along), 0, 1)


def grain(period):
    """Wooden boards along x."""
    def texture(u, v, rng):
        rings = np.sin((v + 2 * ripples(u, v, rng, 60, 25)) * (4 * np.pi / period)) * 0.3 + 0.35
        return np.where(v / period % 1 < 0.12, 1, rings)
    return texture


def fade(top, bottom, mottle=0.0):
    """From the first colour at height `top` to the second at `bottom`; `mottle` adds uneven patches."""
    def texture(u, v, rng):
        return np.clip((v - top) / (bottom - top) + mottle * ripples(u, v, rng, 40, 15), 0, 1)
    return texture


# ------------------------------------------------------------------------------------------- outlines


def paint(colour, texture=plain, second=None, vary=1.0):
    """A Paint of two colours, each (hue in degrees, saturation and value in per cent).

    The second colour is a darker first one by default. `vary` scales the jitter of the hue: 4 gives nearly any hue.
    """
    hue, saturation, value = colour
    return Paint(colour, second or (hue, saturation, 0.7 * value), texture, vary)


def knots(text):
    """'x,y x,y ...' to float64 [N, 2]."""
    return np.array([pair.split(',') for pair in text.split()], np.float64)


def spline(points, closed):
    """The Catmull-Rom curve through the points, eight steps a knot: float64 [N, 2] to [8 N or so, 2]."""
    before, after = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    p = np.concatenate([before, points, after])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0, 1, 8, endpoint=False)[:, np.newaxis, np.newaxis]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, 2), p[-2:-1]])


def shape(text, fill):
    """A filled polygon."""
    return Part(knots(text), True, 0, fill)


def blob(text, fill):
    """A filled outline, smooth through its knots."""
    return Part(spline(knots(text), True), True, 0, fill)


def box(left, top, right, bottom, fill):
    """A filled rectangle."""
    return shape(f'{left},{top} {right},{top} {right},{bottom} {left},{bottom}', fill)


def line(text, width, fill):
    """A stroke of `width` units with round ends."""
    return Part(knots(text), False, width, fill)


def curve(text, width, fill):
    """A stroke, smooth through its knots."""
    return Part(spline(knots(text), False), False, width, fill)


def oval(x, y, radius_x, radius_y, fill, width=0):
    """An ellipse, filled, or a ring of `width` units."""
    angle = np.radians(np.arange(0, 360, 10))
    return Part(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1), True, width, fill)


def leaf(angle, length, fill):
    """A pointed leaf that grows from (50, 64) in the direction `angle` (degrees, 0: up)."""
    turn = np.exp(1j * np.radians(angle - 90))
    tip = turn * length * np.array([0, 0.3 - 0.17j, 0.65 - 0.16j, 1, 0.65 + 0.16j, 0.3 + 0.17j])
    return Part(np.stack([50 + tip.real, 64 + tip.imag], 1), True, 0, fill)


def wheel(x, y, radius):
    """A tyre with a chrome rim."""
    return [oval(x, y, radius, radius, TYRE), oval(x, y, 0.55 * radius, 0.55 * radius, CHROME)]


def legs(xs, top, width, fill, hoof):
    """Straight legs from `top` to the ground."""
    return [part for x in xs for part in (line(f'{x},{top} {x},{98 - width / 2}', width, fill),
                                          line(f'{x},{97 - width / 2} {x},{98 - width / 2}', width, hoof))]


# ------------------------------------------------------------------------------------------- the 20 classes

BLACK, WHITE = paint((240, 15, 14)), paint((45, 5, 97))
TYRE, CHROME = paint((240, 10, 20)), paint((210, 8, 78))
GLASS = paint((200, 45, 80), stripes(9, 60, 0.35), (195, 15, 97))
SILVER = paint((212, 9, 93), stripes(6, 90, 0.2), (215, 18, 76))
SILVER_DARK, LIVERY = paint((214, 14, 72)), paint((225, 80, 72), stripes(6, 0, 0.5), (190, 60, 95))
PINK_FRAME, GUM = paint((322, 85, 92), stripes(7, 45, 0.3), (315, 25, 100)), paint((300, 45, 30))
FEATHER, WING = paint((182, 88, 72), scales(7), (205, 90, 45)), paint((190, 90, 62), scales(6), (215, 85, 36))
SAIL, HULL = paint((42, 12, 99), stripes(13, 0, 0.45), (16, 80, 92)), paint((14, 65, 48), grain(6), (12, 70, 26))
BOTTLE, LABEL = paint((138, 78, 48), stripes(40, 0, 0.22), (115, 45, 78)), paint((50, 22, 96), dots(8), (345, 75, 70))
AMBER, TAXI = paint((47, 90, 97), stripes(20, 0, 0.06), (38, 90, 70)), paint((47, 20, 98), checks(8), (240, 20, 8))
RED = paint((356, 86, 82), fade(48, 84), (350, 90, 50))
TABBY, TABBY_LIGHT = paint((215, 8, 66), stripes(9, 75, 0.42, 1.5), (225, 18, 27)), paint((210, 4, 90))
BLUE_WOOD, CUSHION = paint((201, 60, 82), grain(7), (205, 70, 55)), paint((52, 80, 96), dots(7), (20, 80, 90))
HOLSTEIN, MUZZLE = paint((40, 5, 97), blotches(36, 0.1), (250, 15, 13)), paint((350, 32, 92))
OAK, CLOTH = paint((30, 55, 52), grain(8), (24, 65, 30)), paint((0, 2, 98), checks(9), (352, 88, 78))
GOLDEN, EAR = paint((37, 62, 92), fur(4, 9), (30, 75, 62)), paint((22, 70, 38), fur(4, 9), (20, 75, 24))
CHESTNUT = paint((14, 72, 50), fade(36, 72, 0.2), (10, 80, 28))
MANE = paint((250, 18, 14), stripes(4, 30), (20, 40, 26))
ORANGE = paint((24, 96, 98), stripes(14, 35, 0.25), (240, 15, 12))
ENGINE = paint((215, 8, 82), stripes(5, 90), (220, 10, 38))
SKIN, HAIR = paint((24, 42, 84), vary=0.8), paint((24, 60, 26), fur(3, 8), (28, 60, 44))
JUMPER = paint((245, 62, 60), stripes(9, 90), (60, 8, 96), 4.0)
JEANS = paint((224, 62, 46), fur(3, 3), (218, 50, 66))
LEAF, FLOWER = paint((112, 72, 58), stripes(6, 45, 0.3), (90, 60, 82)), paint((330, 60, 98), vary=2.0)
TERRACOTTA = paint((17, 66, 78), stripes(9, 90, 0.3), (20, 45, 92))
WOOL, FACE = paint((44, 13, 98), scales(8), (34, 26, 72)), paint((255, 16, 20))
VELVET, VELVET_DARK = paint((282, 58, 62), quilt(13), (278, 70, 32)), paint((280, 62, 48), quilt(13), (278, 75, 26))
LOCOMOTIVE, BRASS = paint((150, 72, 40), stripes(13, 0, 0.2), (46, 72, 88)), paint((46, 70, 86))
BEZEL, MAROON = paint((230, 12, 16)), paint((355, 80, 62))
SCREEN = [paint((hue, 72, 98), stripes(4, 90), (hue, 88, 62)) for hue in (55, 180, 120, 300, 0, 230)]

OBJECTS = {
    'aeroplane': Thing(['meadow', 'coast', 'snow'], True, [
        shape('46,48 36,24 44,24 62,48', SILVER_DARK), shape('6,48 -2,24 8,24 22,46', LIVERY),
        blob('1,46 20,43 60,41 84,42 96,49 98,54 90,60 60,62 25,58 7,52', SILVER), line('22,49 80,49', 4, LIVERY),
        shape('86,44 92,45 96,50 87,50', BLACK), shape('46,54 20,80 32,81 64,57', SILVER_DARK),
        shape('6,50 -8,58 3,59 18,52', SILVER_DARK), oval(42, 70, 8, 4, LIVERY)]),
    'bicycle': Thing(['meadow', 'street', 'autumn'], False, [
        oval(21, 77, 18, 18, GUM, width=6), oval(79, 77, 18, 18, GUM, width=6),
        line('21,77 45,77 67,48 38,47 21,77', 5.5, PINK_FRAME), line('35,38 45,77', 5.5, PINK_FRAME),
        curve('79,77 70,52 65,40 70,35 78,38', 5.5, PINK_FRAME), curve('27,37 34,38 43,36', 6, GUM),
        oval(45, 77, 6, 6, GUM), line('45,77 52,86 57,86', 4, GUM)]),
    'bird': Thing(['meadow', 'coast', 'autumn', 'snow'], True, [
        blob('48,44 62,12 72,8 78,20 68,42', WING), shape('18,54 -4,42 1,54 -6,63 22,62', WING),
        blob('12,56 28,46 52,42 68,38 80,32 92,36 92,46 80,56 56,66 30,64', FEATHER),
        blob('30,62 56,58 80,48 88,50 78,60 56,67', paint((26, 88, 95), scales(7), (18, 90, 78))),
        blob('34,48 16,20 22,8 40,16 60,46 48,54', WING), shape('91,37 104,43 91,46', BLACK),
        oval(84, 40, 3, 3, BLACK)]),
    'boat': Thing(['coast'], False, [
        line('50,8 50,80', 4, OAK), shape('54,10 66,34 76,54 92,71 54,71', SAIL),
        shape('46,20 34,46 14,71 46,71', SAIL), shape('50,2 68,6 50,11', paint((16, 80, 92))),
        shape('1,77 99,77 85,98 18,98', HULL), line('2,78 98,78', 5, WHITE)]),
    'bottle': Thing(['room'], False, [
        blob('30,97 29,60 32,48 42,36 43,10 57,10 58,36 68,48 71,60 70,97 50,99', BOTTLE),
        box(41, 3, 59, 14, paint((345, 75, 60))), box(29, 60, 71, 84, LABEL)]),
    'bus': Thing(['street', 'snow'], False, [
        blob('2,38 6,31 50,30 92,31 98,38 99,62 98,86 92,91 50,92 6,91 1,86 1,62', AMBER), box(7, 38, 78, 58, BLACK),
        *[box(x, 40, x + 12, 56, GLASS) for x in (9, 23, 37, 51, 64)], box(83, 39, 97, 60, GLASS),
        box(1, 66, 99, 75, TAXI), *wheel(22, 89, 10), *wheel(76, 89, 10)]),
    'car': Thing(['street', 'autumn', 'coast'], False, [
        blob('1,85 2,72 16,66 30,50 46,46 62,49 77,64 95,69 99,78 98,87 50,89', RED),
        shape('23,66 35,53 46,52 46,66', GLASS), shape('50,52 60,54 71,66 50,66', GLASS), line('4,77 95,77', 3, WHITE),
        oval(95, 73, 4, 3, BRASS), *wheel(22, 87, 12), *wheel(77, 87, 12)]),
    'cat': Thing(['room', 'autumn'], False, [
        curve('66,92 88,94 96,78 88,62', 9, TABBY), blob('27,98 25,74 34,52 50,46 66,52 75,74 73,98 50,99', TABBY),
        blob('42,60 50,56 58,60 58,80 50,86 42,80', TABBY_LIGHT), oval(40, 95, 9, 5, TABBY_LIGHT),
        oval(60, 95, 9, 5, TABBY_LIGHT), shape('28,28 27,2 48,14', TABBY), shape('72,28 73,2 52,14', TABBY),
        oval(50, 30, 24, 20, TABBY), oval(50, 39, 10, 7, TABBY_LIGHT), oval(40, 27, 5, 5, paint((95, 75, 85))),
        oval(60, 27, 5, 5, paint((95, 75, 85))), oval(40, 27, 2, 4, BLACK), oval(60, 27, 2, 4, BLACK),
        oval(50, 36, 3, 2, MUZZLE)]),
    'chair': Thing(['room'], False, [
        line('69,54 71,88', 6, BLUE_WOOD), line('24,60 19,5', 6.5, BLUE_WOOD), line('66,54 68,3', 6.5, BLUE_WOOD),
        *[line(f'{20 + y / 20},{y + 2} 67,{y}', 6, BLUE_WOOD) for y in (8, 22, 36)],
        line('24,62 20,96', 6.5, BLUE_WOOD), line('80,64 84,96', 6.5, BLUE_WOOD), line('36,66 36,97', 6.5, BLUE_WOOD),
        shape('18,60 64,52 86,62 36,71', BLUE_WOOD), blob('22,57 44,51 64,49 80,58 60,64 36,66', CUSHION)]),
    'cow': Thing(['meadow', 'autumn'], False, [
        curve('12,46 4,56 5,76', 4.5, HOLSTEIN), *legs([29, 68], 64, 8, paint((40, 4, 76)), BLACK),
        oval(38, 73, 8, 6, MUZZLE), blob('11,46 24,39 50,40 76,38 86,46 86,64 76,73 48,73 20,74 10,62', HOLSTEIN),
        *legs([18, 79], 64, 9, WHITE, BLACK), curve('84,32 80,27 83,21', 4.5, OAK),
        curve('92,30 96,26 94,20', 4.5, OAK), shape('84,38 70,34 76,42', BLACK),
        blob('80,36 88,30 98,34 104,50 98,58 88,54 80,48', HOLSTEIN), oval(100, 53, 8, 6, MUZZLE),
        oval(91, 39, 2.5, 2.5, BLACK)]),
    'diningtable': Thing(['room'], False, [
        *[line(f'{x},66 {x},{y}', 7, OAK) for x, y in ((24, 88), (76, 88), (9, 96), (91, 96))],
        shape('12,46 88,46 102,64 98,78 86,68 74,79 62,68 50,80 38,68 26,79 14,68 2,78 -2,64', CLOTH),
        oval(34, 54, 12, 4, WHITE), oval(68, 55, 12, 4, WHITE), oval(50, 46, 9, 6, paint((205, 60, 85))),
        oval(46, 41, 4, 4, RED), oval(54, 41, 4, 4, AMBER), oval(50, 38, 4, 4, LEAF)]),
    'dog': Thing(['meadow', 'room', 'autumn', 'snow'], False, [
        curve('22,62 8,54 3,38', 8, GOLDEN), *legs([34, 64], 70, 8, EAR, EAR),
        blob('18,62 30,56 52,56 74,50 82,58 78,74 60,80 38,78 22,80 16,72', GOLDEN),
        *legs([24, 74], 70, 9, GOLDEN, WHITE), line('68,57 83,61', 5, paint((345, 90, 80))),
        blob('66,40 72,30 84,28 92,38 104,44 103,53 90,57 76,58 68,52', GOLDEN), oval(103, 45, 4, 4, BLACK),
        oval(86, 39, 3, 3, BLACK), blob('72,30 62,36 59,54 66,62 74,52 77,38', EAR)]),
    'horse': Thing(['meadow', 'autumn', 'snow'], False, [
        curve('17,46 5,54 4,70 7,82', 8, MANE), *legs([30, 64], 56, 6.5, paint((12, 75, 34)), BLACK),
        blob('14,48 24,40 44,42 62,38 72,16 82,8 92,16 103,32 98,39 88,33 82,44 78,60 62,65 40,63 22,66', CHESTNUT),
        *legs([20, 73], 56, 7.5, CHESTNUT, WHITE), curve('58,42 64,24 72,12 80,7', 8, MANE),
        shape('78,11 79,-1 86,10', CHESTNUT), oval(88, 19, 2.5, 2.5, BLACK), line('97,34 100,32', 4, TABBY_LIGHT)]),
    'motorbike': Thing(['street', 'autumn', 'snow'], False, [
        oval(18, 80, 14, 14, TYRE, width=8), oval(83, 80, 14, 14, TYRE, width=8), oval(18, 80, 5, 5, CHROME),
        line('18,80 42,66', 6, CHROME), line('83,80 68,42', 6, CHROME), curve('58,38 68,38 72,42', 5, TYRE),
        shape('36,60 64,60 60,86 40,86', ENGINE), curve('50,88 30,90 6,86', 6, CHROME), oval(74, 48, 6, 6, BRASS),
        blob('2,60 16,50 36,56 44,62 26,66 10,68', TYRE), blob('36,58 48,44 64,44 72,54 62,66 44,66', ORANGE),
        curve('66,72 76,62 90,60 99,68', 6, ORANGE), curve('2,72 12,62 22,62 32,68', 6, ORANGE)]),
    'person': Thing(['street', 'room', 'coast', 'snow'], False, [
        line('44,60 40,92', 12, JEANS), line('56,60 61,92', 12, JEANS), line('38,96 44,96', 6, BLACK),
        line('60,96 66,96', 6, BLACK), oval(28, 60, 5, 5, SKIN), oval(74, 58, 5, 5, SKIN), line('50,22 50,30', 9, SKIN),
        blob('36,30 50,27 64,30 67,46 65,64 50,66 35,64 33,46', JUMPER), curve('37,33 27,44 28,56', 9, JUMPER),
        curve('63,33 74,42 74,54', 9, JUMPER), oval(50, 14, 11, 12, SKIN),
        blob('38,14 38,4 50,-1 62,4 62,14 54,8 44,8', HAIR), oval(46, 14, 1.6, 1.6, BLACK),
        oval(55, 14, 1.6, 1.6, BLACK)]),
    'pottedplant': Thing(['room'], False, [
        *[leaf(angle, length, LEAF) for angle, length in (
            (-88, 42), (84, 42), (-58, 50), (60, 50), (-30, 58), (30, 56), (0, 62), (-14, 40), (16, 42))],
        *[oval(x, y, 6, 6, FLOWER) for x, y in ((30, 26), (68, 22), (50, 6), (14, 50))],
        box(28, 62, 72, 71, TERRACOTTA), shape('32,71 68,71 62,99 38,99', TERRACOTTA)]),
    'sheep': Thing(['meadow', 'snow'], False, [
        *legs([28, 68], 68, 7, FACE, FACE), *legs([36, 60], 68, 7, FACE, FACE), oval(9, 52, 7, 7, WOOL),
        *[oval(45 + 32 * np.cos(a), 56 + 16 * np.sin(a), 12, 11, WOOL) for a in np.arange(0, 6, 0.62)],
        oval(45, 56, 34, 19, WOOL), blob('74,34 86,30 96,42 98,56 90,62 80,54 73,44', FACE),
        shape('76,40 64,46 70,51 78,46', FACE), blob('70,36 72,26 82,23 90,28 88,36 78,38', WOOL),
        oval(88, 43, 3, 3, WHITE), oval(89, 43, 1.5, 1.5, BLACK)]),
    'sofa': Thing(['room'], False, [
        line('12,92 11,97', 6, OAK), line('88,92 89,97', 6, OAK),
        blob('9,74 10,46 20,40 50,38 80,40 90,46 91,74', VELVET), blob('10,70 30,65 50,68 50,80 10,80', VELVET),
        blob('50,68 70,65 90,70 90,80 50,80', VELVET), box(8, 77, 92, 93, VELVET_DARK),
        blob('0,92 -2,62 7,55 16,62 16,93', VELVET_DARK), blob('100,92 102,62 93,55 84,62 84,93', VELVET_DARK),
        shape('58,50 74,46 78,62 62,66', CUSHION)]),
    'train': Thing(['meadow', 'snow', 'coast'], False, [
        box(70, 24, 80, 46, BLACK), box(67, 20, 83, 27, BRASS), oval(52, 44, 8, 9, BRASS), box(2, 72, 94, 84, BLACK),
        blob('28,48 30,43 60,43 88,43 93,50 93,72 88,76 60,76 30,76', LOCOMOTIVE), box(3, 24, 35, 78, LOCOMOTIVE),
        box(10, 31, 28, 48, GLASS), box(-2, 18, 40, 26, MAROON), shape('92,76 104,97 84,97', MAROON),
        oval(94, 58, 4, 6, BRASS),
        *[part for x in (16, 41, 66) for part in (oval(x, 86, 11, 11, MAROON), oval(x, 86, 4, 4, BRASS))],
        line('16,86 66,86', 3.5, CHROME)]),
    'tvmonitor': Thing(['room'], False, [
        shape('44,80 56,80 60,94 40,94', BEZEL), oval(50, 94, 24, 4, BEZEL), line('46,20 30,2', 4, BEZEL),
        line('54,20 70,2', 4, BEZEL), blob('2,24 8,18 50,17 92,18 98,24 99,50 98,78 92,84 50,85 8,84 2,78 1,50', BEZEL),
        *[box(9 + 13.7 * i, 25, 9.3 + 13.7 * (i + 1), 77, colour) for i, colour in enumerate(SCREEN)]]),
}

# ------------------------------------------------------------------------------------------- the scenes


def land(top, fill, bottom=200):
    """Ground, sky or wall over the whole width, from height `top` down to `bottom`."""
    return box(-100, top, 200, bottom, fill)


SKY = land(-100, paint((208, 55, 88), fade(-10, 52, 0.25), (200, 14, 99)), 60)
GREY_SKY = land(-100, paint((220, 22, 72), fade(-20, 52, 0.3), (35, 18, 94)), 60)
CLOUD, HILL = paint((210, 6, 98)), paint((135, 38, 58), fur(14, 4), (150, 36, 46))
CLOUDS = [blob(f'{x - 16},{y + 4} {x - 10},{y - 3} {x},{y - 6} {x + 9},{y - 2} {x + 15},{y + 4} {x},{y + 5}', CLOUD)
          for x, y in ((8, 12), (48, 26), (88, 8), (120, 24))]
HILLS = blob('-80,70 -40,44 -5,38 25,48 50,41 78,36 105,46 140,40 180,70', HILL)
BUSH = paint((128, 55, 42), blotches(5), (105, 55, 58))
GRASS = paint((98, 58, 62), fur(3, 7), (110, 65, 42))
SAND = paint((40, 36, 90), fur(4, 4), (36, 42, 76))

SCENES = {
    'meadow': [SKY, *CLOUDS, HILLS, land(50, GRASS), *[oval(x, 51, 9, 6, BUSH) for x in (-12, 22, 30, 96)],
               blob('30,52 40,52 66,110 120,200 -40,200 20,110', paint((34, 42, 72), fur(6, 3), (30, 45, 56)))],
    'coast': [SKY, *CLOUDS[:2], land(46, paint((196, 62, 72), fur(14, 3), (205, 70, 50))),
              line('-100,48 200,48', 1, WHITE), blob('-90,104 -20,76 20,80 60,72 110,78 190,96 190,220 -90,220', SAND)],
    'street': [GREY_SKY, *[box(x, top, x + 25, 64, paint((hue, 38, value), panes(7, 9), (210, 34, 46), 2.0))
                           for x, top, hue, value in (
                               (-40, 14, 20, 66), (-14, 4, 45, 78), (12, 20, 350, 62), (38, 8, 210, 58),
                               (64, 18, 30, 74), (90, 2, 10, 56), (116, 16, 60, 70))],
               land(62, paint((40, 8, 74), panes(12, 6, 0.12), (40, 8, 66))),
               land(72, paint((230, 8, 42), fur(3, 3), (225, 8, 52))),
               *[line(f'{x},90 {x + 14},90', 2.5, WHITE) for x in range(-60, 160, 26)]],
    'room': [land(-100, paint((48, 26, 90), stripes(8, 0, 0.4), (40, 34, 80), 3.0)), box(12, 4, 34, 30, OAK),
             box(15, 7, 31, 27, paint((190, 45, 80), blotches(14), (120, 45, 60), 3.0)), box(62, -6, 92, 34, WHITE),
             box(65, -3, 89, 31, paint((205, 40, 95), fade(-10, 34, 0.2), (200, 10, 99))), land(58, WHITE),
             land(62, paint((28, 52, 66), grain(9), (24, 58, 44))),
             oval(50, 92, 46, 15, paint((5, 55, 60), quilt(9), (40, 40, 80), 3.0))],
    'snow': [GREY_SKY, HILLS, land(50, paint((210, 8, 97), fade(50, 100, 0.35), (215, 22, 84))),
             *[shape(f'{x},{y} {x - 10},56 {x + 10},56', paint((150, 40, 38), blotches(6, 0.5), (200, 6, 95)))
               for x, y in ((-8, 20), (16, 30), (30, 24), (84, 22), (104, 30))]],
    'autumn': [SKY, *[part for x in (-16, 14, 42, 84, 112) for part in (
                   box(x - 2, 26, x + 2, 58, OAK),
                   oval(x, 20, 18, 15, paint((32, 78, 80), blotches(6), (14, 78, 66), 2.0)))],
               land(54, paint((42, 58, 58), fur(3, 6), (60, 50, 44))),
               land(60, paint((34, 60, 62), blotches(5, 0.7), (18, 72, 66)))],
}

# ------------------------------------------------------------------------------------------- drawing


class Pose:
    """Where a thing is: converts units to drawn pixels and back.

    Args:
        rng: numpy Generator, for the bends of the outline.
        base: (x, y) in drawn pixels, where the point `origin` of the thing is drawn.
        scale: drawn pixels per unit.
        turn: degrees. stretch: x over y, negative if mirrored.
    """

    def __init__(self, rng, base, scale, turn=0.0, stretch=1.0, origin=(50, 100)):
        cos, sin = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
        self.matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / abs(stretch)])
        self.base, self.scale, self.origin = np.array(base), scale, np.array(origin)
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def to_pixels(self, points):
        """Units float64 [N, 2] to drawn pixels int32 [N, 2]."""
        bent = points + WOBBLE * np.sin(points[:, ::-1] * (2 * np.pi / 85) + self.phases)
        return np.rint((bent - self.origin) @ self.matrix.T + self.base).astype(np.int32)

    def to_units(self, x, y, width, height):
        """The positions u, v in units, float32 [height, width], of a window of drawn pixels, without the bends."""
        rows, columns = np.mgrid[y:y + height, x:x + width]
        inverse = np.linalg.inv(self.matrix)
        uv = (np.stack([columns, rows], axis=-1) - self.base) @ inverse.T + self.origin
        return np.float32(uv[:, :, 0]), np.float32(uv[:, :, 1])


def mix_colour(colour, shift):
    """(hue, saturation, value) plus a shift of these three, as RGB, float32 [3] in 0..255."""
    hue, saturation, value = (np.array(colour) + shift) / (360, 100, 100)
    return 255 * np.float32(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0.05, 1)))


def part_mask(part, pose, size):
    """The drawn pixels of one part: uint8 [H, W] in {0, 1}, size = (H, W)."""
    mask = np.zeros(size, np.uint8)
    points = pose.to_pixels(part.points)
    if part.width:
        return cv2.polylines(mask, [points], part.closed, 1, max(1, round(part.width * pose.scale)))
    return cv2.fillPoly(mask, [points], 1)


def relief(mask, reach):
    """Brightness around 1, float32 [H, W], that makes a flat mask look round and lit from the upper left."""
    window = (2 * reach + 1, 2 * reach + 1)
    soft = mask.astype(np.float32)
    for _ in range(2):
        soft = cv2.blur(soft, window, borderType=cv2.BORDER_CONSTANT)
    slope = cv2.Sobel(soft, -1, 1, 0) * 0.5 + cv2.Sobel(soft, -1, 0, 1)
    return 1 + np.clip(slope * (0.09 * reach), -0.3, 0.22)


def draw_parts(canvas, parts, pose, shift, rng, round_off):
    """Paints parts onto the canvas.

    Args:
        canvas: float32 RGB [H, W, 3], changed in place.
        parts: list of Part. pose: Pose. rng: numpy Generator.
        shift: float64 [3], added to the hue, saturation and value of all colours.
        round_off: units over which edges are shaded, 0 for none.

    Returns:
        bool [H, W], the silhouette.
    """
    silhouette = np.zeros(canvas.shape[:2], bool)
    for part in parts:
        mask = part_mask(part, pose, canvas.shape[:2])
        silhouette |= mask.astype(bool)
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            continue
        window, inside = np.s_[y:y + height, x:x + width], mask[y:y + height, x:x + width]
        share = part.paint.texture(*pose.to_units(x, y, width, height), rng)[:, :, np.newaxis]
        first, second = (mix_colour(c, shift * (part.paint.vary, 1, 1)) for c in (part.paint.colour, part.paint.second))
        colour = first + (second - first) * np.float32(share)
        if round_off:
            colour *= relief(inside, round(round_off * pose.scale))[:, :, np.newaxis]
        np.copyto(canvas[window], colour, where=inside[:, :, np.newaxis] > 0)
    return silhouette


def cast_shadow(canvas, thing, pose):
    """Darkens the ground beside a thing by its silhouette, laid flat and blurred. Labels have no shadows."""
    size = canvas.shape[:2]
    silhouette = sum(part_mask(part, pose, size) for part in thing.parts) > 0
    foot = pose.base[1]
    flat = np.array([[1, -0.35, 0.35 * foot], [0, 0.22, 0.78 * foot]])
    shadow = cv2.warpAffine(silhouette.astype(np.float32), flat, size[::-1])
    canvas *= 1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), 2 * SUPERSAMPLING)[:, :, np.newaxis]


# ------------------------------------------------------------------------------------------- one picture


def draw_classes(seed, split, index):
    """Classes of one picture, the main object first: list of 1 to 4 int.

    Every twenty pictures share four shuffled lists of the classes, one for each rank. So each class is the main object
    exactly once in twenty pictures, and a companion about as often as any other.
    """
    classes = np.arange(1, len(VOC.names))
    block, place = divmod(index, len(classes))
    lists = random_stream(seed, split, block, 'classes').permuted(np.tile(classes, (len(OBJECT_COUNT_ODDS), 1)), axis=1)
    count = 1 + random_stream(seed, split, index, 'count').choice(len(OBJECT_COUNT_ODDS), p=OBJECT_COUNT_ODDS)
    return [int(c) for c in lists[:count, place]]


def random_stream(seed, split, index, purpose):
    """A separate numpy Generator for each purpose, so that no draw in one picture can change another picture."""
    # Counted from 1, because numpy treats a seed that ends in 0 like one without that 0.
    purpose_number = 1 + ('classes', 'count', 'scene').index(purpose)
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose_number])


def draw_picture(seed, split, index, height=None, width=None):
    """Draws one picture and its labels, which depend on the arguments alone.

    Returns:
        image: uint8 RGB [H, W, 3].
        labels: uint8 [H, W], class index, 0 background, 255 void border.
    """
    rng = random_stream(seed, split, index, 'scene')
    sides = rng.integers(*LONG_SIDE), rng.integers(*SHORT_SIDE)
    drawn_height, drawn_width = sides if rng.random() < 0.3 else sides[::-1]
    size = height or drawn_height, width or drawn_width
    classes = draw_classes(seed, split, index)
    canvas = draw_scene(OBJECTS[VOC.names[classes[0]]].homes, size, rng)
    instances = draw_objects(canvas, classes, size, rng)
    image = expose(cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA), rng)
    return image, label_instances(instances, classes)


def draw_scene(homes, size, rng):
    """The empty scene, float32 RGB [SUPERSAMPLING * H, SUPERSAMPLING * W, 3]."""
    height, width = (SUPERSAMPLING * side for side in size)
    name = rng.choice(list(SCENES) if rng.random() < STRAY_SCENES else homes)
    pose = Pose(rng, (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.36, 0.5)), max(height, width) / 100,
                stretch=draw_stretch(rng, 0.9, 1.15), origin=(50, 55))
    canvas = np.zeros((height, width, 3), np.float32)
    draw_parts(canvas, SCENES[name], pose, rng.normal(0, SCENE_JITTER), rng, round_off=0)
    return canvas


def draw_stretch(rng, lowest, highest):
    """A random stretch for a Pose, mirrored in half of all cases."""
    stretch = rng.uniform(lowest, highest)
    return -stretch if rng.random() < 0.5 else stretch


def draw_objects(canvas, classes, size, rng):
    """Draws the objects from back to front onto the canvas; the main object, the first of the list, is drawn last.

    Returns:
        uint8 [H, W], 0 or the position of the visible object in `classes`, counted from 1.
    """
    things = [OBJECTS[VOC.names[c]] for c in classes]
    places = place_objects([thing.flies for thing in things], size, rng)
    instances = np.zeros(canvas.shape[:2], np.uint8)
    for rank in sorted(range(len(things)), key=lambda rank: (rank == 0, places[rank][1])):
        thing = things[rank]
        length = rng.uniform(*(COMPANION_SIZE if rank else MAIN_SIZE)) * np.sqrt(size[0] * size[1])
        turn = rng.normal(0, 2 * TILT if thing.flies else TILT)
        pose = Pose(rng, SUPERSAMPLING * places[rank], SUPERSAMPLING * length / 100, turn,
                    draw_stretch(rng, 0.9, 1.12))
        if not thing.flies:
            cast_shadow(canvas, thing, pose)
        silhouette = draw_parts(canvas, thing.parts, pose, rng.normal(0, COLOUR_JITTER), rng, round_off=3)
        instances[silhouette] = rank + 1
    centre = SUPERSAMPLING // 2
    return instances[centre::SUPERSAMPLING, centre::SUPERSAMPLING]


def place_objects(flies, size, rng):
    """Foot points in pixels, float64 [N, 2] as (x, y), of the main object and the companions behind it.

    Each companion gets the one of six random places that is farthest from the others (best-candidate sampling), so that
    objects overlap but rarely hide one another.
    """
    height, width = size
    places = []
    for rank, in_the_air in enumerate(flies):
        left, right = (0.1, 0.9) if rank else (0.3, 0.7)
        top, bottom = (0.6, 0.95) if in_the_air else (0.66, 0.84) if rank else (0.86, 0.98)
        spots = rng.uniform((left, top), (right, bottom), (6, 2))
        distances = [min((abs(spot - place).sum() for place in places), default=0) for spot in spots]
        places.append(spots[np.argmax(distances)])
    return np.array(places) * (width, height)


def expose(image, rng):
    """Light, lens and sensor: turns float32 RGB [H, W, 3] of any range into uint8."""
    height, width = image.shape[:2]
    across, down = rng.uniform(-LIGHT, LIGHT, 2)
    light = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, np.newaxis]
    tint = rng.normal(1, 0.03, 3)
    image = cv2.GaussianBlur(image * np.float32(light[:, :, np.newaxis] * tint), (0, 0), rng.uniform(*BLUR))
    return np.clip(image + rng.normal(0, NOISE, image.shape), 0, 255).astype(np.uint8)


def label_instances(instances, classes):
    """Class labels with VOC's void border, one pixel on either side of every edge between two instances.

    VOC's border is 5 pixels wide in pictures of 500. Two here are the same share, and leave a chair's leg a core.

    Args:
        instances: uint8 [H, W], 0 or the position of an object in `classes`, counted from 1.
        classes: list of int.

    Returns:
        uint8 [H, W].
    """
    labels = np.array([0, *classes], np.uint8)[instances]
    edge = cv2.morphologyEx(instances, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    labels[edge] = IGNORE_LABEL
    return labels


# ------------------------------------------------------------------------------------------- the program


def write_split(output_dir, split, count, seed, height, width):
    """Draws and writes the pictures of one split; returns their ids."""
    ids = [f'{split}_{index:06d}' for index in range(count)]
    for index, name in enumerate(tqdm(ids, desc=f'drawing {split}', unit='picture')):
        image, labels = draw_picture(seed, split, index, height, width)
        save_image(os.path.join(output_dir, 'JPEGImages', name + '.jpg'), image)
        save_labels(os.path.join(output_dir, 'SegmentationClass', name + '.png'), labels, VOC.palette)
    return ids


def check_lists(paths):
    """Raises UserError if one of the lists that will be replaced names pictures that were not drawn here."""
    for path in filter(os.path.exists, paths):
        with open(path, encoding='utf-8', errors='replace') as file:
            if not all(line.startswith(SPLITS) for line in file):
                raise UserError(f'{path} is the list of another data set: give another --output_dir')


def parse_args(argv=None):
    """The program's flags."""
    parser = ArgumentParser('Draws a small data set in the folder layout of PASCAL VOC.')
    parser.add_argument('--output_dir', required=True, help='folder to write; files of the same names are replaced')
    parser.add_argument('--num_train', type=positive_int, default=160, help='pictures to train on')
    parser.add_argument('--num_val', type=positive_int, default=40, help='pictures to validate on; 20 show every class')
    parser.add_argument('--height', type=positive_int, help='of every picture in pixels; random by default')
    parser.add_argument('--width', type=positive_int, help='of every picture in pixels; random by default')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='another seed gives another data set')
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the pictures, and their lists last, so that an interrupted run leaves no list."""
    args = parse_args(argv)
    lists = {split: os.path.join(args.output_dir, 'ImageSets', 'Segmentation', split + '.txt')
             for split in ('train', 'val', 'trainval')}
    check_lists(lists.values())
    for folder in ('JPEGImages', 'SegmentationClass', os.path.join('ImageSets', 'Segmentation')):
        os.makedirs(os.path.join(args.output_dir, folder), exist_ok=True)
    for path in filter(os.path.exists, lists.values()):
        os.remove(path)
    counts = {'train': args.num_train, 'val': args.num_val}
    ids = {split: write_split(args.output_dir, split, counts[split], args.seed, args.height, args.width)
           for split in counts}
    ids['trainval'] = ids['train'] + ids['val']
    for split, path in lists.items():
        with open(path, 'w', encoding='utf-8') as file:
            file.writelines(name + '\n' for name in ids[split])


if __name__ == '__main__':
    run_program(main)
