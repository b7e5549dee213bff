"""Class sets: the names of a mask's values, and the colour in which each is drawn.

    class_set = classes.read_classes('camvid/classes.txt')

A record keeps its class set in a side file, RECORD.json, and a run in train/settings.json, so --classes is needed only
for the conversion. Without any of these the classes are VOC's.
"""
import json
import os
import re
from typing import NamedTuple

import numpy as np

import utils
from utils import UserError

IGNORE_LABEL = 255  # VOC's void: borders and things too hard to annotate, in no loss and in no score
MAX_CLASSES = 254  # the values 0 to 253; 254 is needed by augmentation
MAX_BYTES = 2 ** 16  # of a file of names
COLOUR = re.compile('#([0-9a-fA-F]{6})')


class ClassSet(NamedTuple):
    """Names and colours of the classes 0, 1, 2, ...; `names` tuple of str, `colours` tuple of (R, G, B) in 0..255."""
    names: tuple
    colours: tuple

    @property
    def has_background(self):
        """Whether class 0 is the background, which overlays do not colour."""
        return self.names[0] == 'background'

    @property
    def palette(self):
        """uint8 [256, 3]: each class's colour, and VOC's colours for the other values, void included."""
        palette = utils.voc_palette()
        palette[:len(self.names)] = self.colours
        return palette


def make_class_set(names, colours=None):
    """A ClassSet; `colours` is a list of (R, G, B), or None for a class that gets VOC's colour.

    Black is reserved for the background: without one, class 0 gets VOC's second colour, and so on.
    """
    first = 0 if names[0] == 'background' else 1
    default = utils.voc_palette()[first:first + len(names)].tolist()
    colours = colours or [None] * len(names)
    return ClassSet(tuple(names), tuple(tuple(own or fallback) for own, fallback in zip(colours, default)))


VOC = make_class_set((
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'))


# ------------------------------------------------------------------------------------------- a file of names


def read_classes(path):
    """Reads a file with one class a line, in the order of the masks' values; `name` or `name #rrggbb`, its colour.

    Returns:
        ClassSet.

    Raises:
        UserError: the file is missing or not such a list, or a name or a colour occurs twice.
    """
    try:
        with utils.open_file(path, encoding='utf-8-sig') as file:
            lines = [' '.join(line.split()) for line in file.read(MAX_BYTES).splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f'--classes {path}: {error.strerror}; name a text file with one class a line') from error
    except UnicodeDecodeError:
        raise UserError(f'--classes {path}: is not UTF-8 text; name a text file with one class a line') from None
    pairs = [re.fullmatch(f'(.+?)(?: {COLOUR.pattern})?', line).groups() for line in lines]
    try:
        for name, colour in pairs:
            if not colour and re.search(r' #\S*$', name):
                raise ValueError(f'{name[:80]!r} does not end in a colour; give six digits, such as #80a0ff')
        return check_class_set([name for name, _ in pairs], [colour and bytes.fromhex(colour) for _, colour in pairs])
    except ValueError as error:
        raise UserError(f'--classes {path}: {error}') from None


def check_class_set(names, colours=None):
    """make_class_set of names from a file; ValueError with one line if they are not a class set."""
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f'holds {len(names)} classes; give 1 to {MAX_CLASSES}, one a line')
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= 60 or any(map(utils.is_control, name)):
            raise ValueError(f'{str(name)[:80]!r} is not a name; give 1 to 60 letters')
    class_set = make_class_set(names, colours)
    for what, values in (('name', class_set.names), ('colour', class_set.colours)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f'the {what} {twice[0]} stands for two classes; give each its own')
    void = tuple(utils.voc_palette()[IGNORE_LABEL].tolist())
    if void in class_set.colours:
        raise ValueError(f'the colour {void} is that of void; give another')
    return class_set


# ------------------------------------------------------------------------------------------- as JSON


def as_json(class_set):
    """A ClassSet as a list of {'name': str, 'colour': '#rrggbb'}."""
    return [{'name': name, 'colour': '#{:02x}{:02x}{:02x}'.format(*colour)} for name, colour in zip(*class_set)]


def as_text(class_set):
    """A ClassSet as the text of a file that read_classes reads."""
    return ''.join('{name} {colour}\n'.format(**entry) for entry in as_json(class_set))


def from_json(entries):
    """The ClassSet of as_json's result; ValueError with one line if it is something else."""
    try:
        return check_class_set([entry['name'] for entry in entries],
                               [bytes.fromhex(COLOUR.fullmatch(entry['colour']).group(1)) for entry in entries])
    except (TypeError, KeyError, AttributeError):
        raise ValueError('is not a list of classes') from None


# ------------------------------------------------------------------------------------------- a record's side file


def side_file(record):
    """The path of a record's side file, str."""
    return f'{record}.json'


def save_side_file(path, class_set, images, pixels):
    """Writes what a record holds: `classes` (as_json), `images`, int, and `pixels`, a count each class and void.

    Args:
        path: str. class_set: ClassSet. images: int.
        pixels: int64 [256], by label value.
    """
    count = len(class_set.names)
    utils.save_json(path, {'classes': as_json(class_set), 'images': int(images),
                           'pixels': np.asarray(pixels)[[*range(count), IGNORE_LABEL]].tolist()})


def read_side_file(record):
    """A record's side file, dict with `classes` as ClassSet; None if it has none.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    path = side_file(record)
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            content = json.loads(file.read(2 ** 20))
        content['classes'] = from_json(content['classes'])
        if any(not isinstance(count, int) or count < 0 for count in [content['images'], *content['pixels']]) or len(
                content['pixels']) != len(content['classes'].names) + 1:
            raise ValueError('holds other counts')
        return content
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; mend that, or write the record again with convert_fcn_dataset.py'
                        ) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f'{path}: damaged; write the record again with convert_fcn_dataset.py') from None


def of_record(record, classes_file=None):
    """The ClassSet of a record: that of its side file, else of --classes, else VOC's.

    Args:
        record: str. classes_file: str or None, --classes.

    Raises:
        UserError: the two differ, or one is damaged.
    """
    wanted = read_classes(classes_file) if classes_file else None
    stored = read_side_file(record)
    if stored and wanted:
        check_same(wanted, f'--classes {classes_file}', stored['classes'], side_file(record))
    return stored['classes'] if stored else wanted or VOC


def of_run(settings, number_of_classes, checkpoint, classes_file=None):
    """The ClassSet of a checkpoint: that of --classes, which must have its run's names; else its run's; else VOC's.

    Args:
        settings: dict, the run's settings.json; may be empty.
        number_of_classes: int, that of the checkpoint's variables.
        checkpoint: str, for messages.
        classes_file: str or None, --classes.

    Raises:
        UserError: names or number of classes differ.
    """
    wanted = read_classes(classes_file) if classes_file else None
    try:
        stored = from_json(settings['classes']) if settings.get('classes') else None
    except ValueError:
        raise UserError(f'{os.path.join(os.path.dirname(checkpoint), "settings.json")}: its classes are damaged; '
                        'remove it and give --classes') from None
    if stored and wanted:
        check_same(wanted, f'--classes {classes_file}', stored, f'the run of {checkpoint}')
    found = wanted or stored or VOC
    if len(found.names) != number_of_classes:
        raise UserError(f'{checkpoint}: has {number_of_classes} classes, '
                        + (f'--classes {classes_file} names {len(found.names)}' if wanted else
                           f'its run names {len(found.names)}' if stored else 'VOC 21; name them by --classes FILE'))
    return found


def describe(class_set, file, classes_file=None):
    """A ClassSet, and where its names come from: `file`, a side file or settings.json, --classes, or VOC; one line."""
    source = file if os.path.exists(file) else f'--classes {classes_file}' if classes_file else (
        f'VOC, because {file} is missing; --classes FILE names others')
    names = class_set.names if len(class_set.names) < 6 else (*class_set.names[:3], '...', class_set.names[-1])
    return f'classes: {len(class_set.names)} ({", ".join(names)}), from {source}'


def check_same(one, its_place, other, others_place):
    """Raises UserError, which names the first difference, unless the names of two ClassSets are the same."""
    if one.names != other.names:
        where = next((i for i, (a, b) in enumerate(zip(one.names, other.names)) if a != b),
                     min(len(one.names), len(other.names)))
        told = [f'{place} has {len(each.names)} classes, of which number {where} is '
                f'{each.names[where] if where < len(each.names) else "not there"}'
                for each, place in ((one, its_place), (other, others_place))]
        raise UserError(f'{"; ".join(told)}: take data and network of the same classes')
