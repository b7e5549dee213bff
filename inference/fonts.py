"""Class names in pictures: each in a font that has its characters, such as a Chinese one; without one, as a number.

    text, font = fonts.choose(class_set.names)[0]
"""
import functools
import itertools
import os
import re
import sys
from typing import NamedTuple

import matplotlib
import tqdm
from matplotlib.ft2font import FaceFlags, FT2Font

# Comes with Matplotlib, and has Latin, Greek, Cyrillic, Hebrew and Arabic letters.
DEJAVU = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
SPECIAL = re.compile('serif|mono|bold|italic|oblique|light|thin|black|medium|condensed', re.IGNORECASE)
BLANK = re.compile('LastResort|Blank')  # fonts that have a box, or nothing, for every character


class Label(NamedTuple):
    """What stands for a class in a picture: its name or number, and the path of a font's file; both str."""
    text: str
    font: str


@functools.cache
def choose(names):
    """Chooses a Label for each class name, tuple of str; returns a tuple. Prints, once for each such tuple, which
    classes are labelled by their numbers."""
    fonts = find_fonts(names)
    without = [f'{index} {name}' for index, name in enumerate(names) if name not in fonts]
    if without:
        tqdm.tqdm.write(f'no installed font has the characters of {len(without)} class names, so that pictures show '
                        f'their numbers: {", ".join(without[:10])}; for Chinese, Japanese and Korean: apt install '
                        'fonts-noto-cjk', file=sys.stderr)
    return tuple(Label(name, fonts[name]) if name in fonts else Label(str(index), DEJAVU)
                 for index, name in enumerate(names))


def find_fonts(names):
    """The fonts of the names that can be drawn, dict of name to path: DejaVu Sans, else any that is installed."""
    without, fonts = set(names), {}
    for path in itertools.chain([DEJAVU], list_installed()):
        characters = read_characters(path)
        fonts.update({name: path for name in without if characters.issuperset(map(ord, name))})
        without -= fonts.keys()
        if not without:
            break
    return fonts


def list_installed():
    """Paths of all installed fonts, regular ones without serifs first. A generator, because the search takes time."""
    from matplotlib import font_manager  # the list that it keeps would not have a font that was installed just now
    paths = [path for path in font_manager.findSystemFonts() if not BLANK.search(path)]
    yield from sorted(paths, key=lambda path: (bool(SPECIAL.search(os.path.basename(path))), path))


def read_characters(path):
    """The code points that a font can draw, set of int; empty if its file is damaged, or has pictures in place of
    outlines, as for coloured emoji."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return set()
    has_outlines = FaceFlags.SCALABLE in font.face_flags and FaceFlags.COLOR not in font.face_flags
    return set(font.get_charmap()) if has_outlines else set()
