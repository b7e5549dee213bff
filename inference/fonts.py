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
        fonts.update(dict.fromkeys(filter(functools.partial(can_draw, open_font(path)), without), path))
        without -= fonts.keys()
        if not without:
            break
    return fonts


def list_installed():
    """Paths of all installed fonts, regular ones without serifs first. A generator, because the search takes time."""
    from matplotlib import font_manager  # the list that it keeps would not have a font that was installed just now
    paths = [path for path in font_manager.findSystemFonts() if not BLANK.search(path)]
    yield from sorted(paths, key=lambda path: (bool(SPECIAL.search(os.path.basename(path))), path))


def open_font(path):
    """An FT2Font; None if the file is damaged, or of pictures in place of outlines, as for coloured emoji."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return None
    return font if FaceFlags.SCALABLE in font.face_flags and FaceFlags.COLOR not in font.face_flags else None


def can_draw(font, text):
    """Whether an FT2Font, or None, has all characters of a text."""
    return font is not None and all(font.get_char_index(ord(character)) for character in text)
