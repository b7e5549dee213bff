"""Photos of any kind and place: they are found, named, and read as a viewer shows them.

    photos, problems = find_photos(['photo.jpg', 'folder/'], 'predictions')
    image = read_photo(photos[0].path)
"""
import contextlib
import os
import sys
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

import utils
from datasets.pictures import check_memory, open_picture
from utils import UserError

# What counts as a photo in a folder. HEIC cannot be read, but a phone's photos must be named, not silently ignored.
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm',
                 '.pbm', '.avif', '.jp2', '.heic', '.heif')
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000')  # no EPS, which runs programs
# What follows a photo's name in the names of its results.
RESULTS = ('.png', '_crfed.png', '_confidence.png', '_overlay.jpg', '_probabilities.npz')


class Photo(NamedTuple):
    """An image file: its path, and its results' path in the output folder, without ending; both str."""
    path: str
    name: str


def find_photos(paths, output_dir):
    """Finds the photos in a list of files and folders, in folders with all their subfolders except output_dir.
    Returns a list of Photo, with different names, and a list of str, one line for each path that is missing, a folder
    that cannot be read, or one without image files. UserError if there is no photo, or a result would overwrite one."""
    several = sum(map(os.path.isdir, paths)) > 1  # then the names begin with the folder's
    found, problems = {}, []  # found: path to name, with ending
    for path in paths:
        if os.path.isdir(path):
            files, unread = list_folder(path, output_dir)
            root = os.path.dirname(os.path.abspath(path)) if several else path
            found.update({file: os.path.relpath(file, root) for file in files if file not in found})
            problems += unread or ([] if files else [f'{path}: no image files in this folder'])
        elif os.path.exists(path):
            found.setdefault(os.path.normpath(path), os.path.basename(path))
        else:
            problems.append(f'{path}: no such file or folder')
    if not found:
        raise UserError('--images: no photo found (' + '; '.join(problems) + ')')
    photos = choose_names(found)
    own = {os.path.realpath(photo.path) for photo in photos}
    for result in (os.path.join(output_dir, photo.name + ending) for photo in photos for ending in RESULTS):
        if os.path.realpath(result) in own:
            raise UserError(f'--output_dir {output_dir}: {result} is one of the photos; choose another folder')
    return photos, problems


def list_folder(folder, output_dir):
    """Finds the image files below a folder, also in linked folders; not hidden ones (.name), nor those in output_dir.
    Each folder is searched once, so that links in a circle end. Returns a sorted list of paths, and a list of str, one
    line for each folder that cannot be read, each link to nowhere, and each link to a folder above."""
    root, results = os.path.realpath(folder), os.path.realpath(output_dir)
    if root == results:  # a second run would take the first run's results for photos
        raise UserError(f'--output_dir {output_dir}: holds the photos; choose another folder for the results')
    files, problems, searched = [], [], {results}

    def note(error):
        problems.append(f'{error.filename}: {error.strerror}')

    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        here = os.path.realpath(place)
        above = root.startswith(os.path.join(here, ''))
        if above:
            problems.append(f'{place}: a link to {here}, above the folder; name that as --images to search it')
        if above or here in searched:
            folders.clear()
            continue
        searched.add(here)
        folders[:] = sorted((name for name in folders if not name.startswith('.')),
                            key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        for path in (os.path.join(place, name) for name in names if not name.startswith('.')):
            if os.path.splitext(path)[1].lower() in IMAGE_ENDINGS:
                files.append(path)
            elif os.path.islink(path) and not os.path.exists(path):
                problems.append(f'{path}: a link to nowhere')
    return sorted(files), problems


def choose_names(found):
    """The Photos of a dict of path to name with ending, each with a name of its own: where two want the same one (a.jpg
    and a.png), the second gets -2."""
    photos, taken = [], set()
    for path, file_name in found.items():
        stem = name = os.path.splitext(file_name)[0]
        number = 1
        # In lower case, because some file systems compare so. NAME_crfed may be the name of another photo.
        while not taken.isdisjoint(results := {f'{name}{ending}'.lower() for ending in RESULTS}):
            number += 1
            name = f'{stem}-{number}'
        if number > 1:
            print(f'{path}: its results are named {name}, because {stem} is taken', file=sys.stderr)
        taken |= results
        photos.append(Photo(path, name))
    return photos


def read_photo(path):
    """Reads an image file as a viewer shows it: upright, transparency on white, an animation's first frame.
    uint8 RGB [H, W, 3], a JPEG's as the records' decoder reads it. UserError if it is not an image, damaged or too
    large."""
    try:
        with warnings.catch_warnings(), utils.open_file(path) as file:
            warnings.simplefilter('ignore')  # about large pictures and odd metadata, both harmless
            with open_picture(file, FORMATS) as picture:
                check_memory(picture)
                picture.load()
                with contextlib.suppress(Exception):  # damaged EXIF
                    ImageOps.exif_transpose(picture, in_place=True)  # a copy of the largest would take 0.7 GB
                return to_rgb(picture)
    except UnidentifiedImageError:
        reason = 'not an image, or of a format that cannot be read; convert it to JPEG or PNG'
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{path}: {reason}')


def to_rgb(picture):
    if picture.mode.startswith(('I', 'F')):  # grey of 16 bits and more
        grey = np.asarray(picture, np.float64)
        measured = grey[np.isfinite(grey)]  # nan and infinity mark what was not measured
        lowest, highest = (0, 65535) if picture.mode.startswith('I;16') or not measured.size else (
            measured.min(), measured.max())
        grey = np.nan_to_num(grey, nan=lowest, posinf=highest, neginf=lowest)
        grey = np.round((grey - lowest) / max(highest - lowest, 1e-30) * 255).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return np.array(picture.convert('RGB'))
