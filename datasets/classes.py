"""Class sets: the names of a mask's values, and the colour in which each is drawn.

    class_set = classes.read_classes('camvid/classes.txt')

A record keeps its class set in a side file, RECORD.json, and a run in train/settings.json, so --classes is needed only
for the conversion. Without any of these the classes are VOC's.
"""
import itertools
import json
import os
import re
from typing import NamedTuple

import numpy as np

import utils
from utils import UserError

IGNORE_LABEL = 255  # VOC's void: borders and things too hard to annotate, in no loss and in no score
VOID_COLOUR = tuple(utils.voc_palette()[IGNORE_LABEL].tolist())  # in VOC's masks
NO_CLASS = 254  # the label of a value that is neither a class nor void
MAX_CLASSES = 254  # the values 0 to 253
COLOUR = re.compile('#([0-9a-fA-F]{6})')
VOID_NAMES = {'void', 'ignore', 'ignored', '__ignore__', 'unlabeled', 'unlabelled'}

# The forms of a file of names. All lines have the same one, except that a table may begin with a title.
NAME = r'["\']?(?![-#\s]|\d+\s)(?P<name>[^"\[\]{}<>=|:,;\t]+?)["\']?'
HEX, RGB = rf'(?P<hex>{COLOUR.pattern})', r'(?P<rgb>\d{1,3}[ ,;\t]+\d{1,3}[ ,;\t]+\d{1,3})'
VALUE, COMMA, GAP = r'(?P<value>-?\d{1,3})', r'\s*[,;:\t]\s*', r'(?:\s*[,;:\t]\s*|\s+)'
LIST = f'{NAME}(?:{GAP}{HEX})?'
TABLES = (f'{NAME}:{RGB}?:[^:]*:[^:]*',  # labelmap.txt of CVAT
          f'{NAME}{GAP}{RGB}', f'{RGB}{GAP}{NAME}',
          f'{VALUE}{GAP}{NAME}(?:{GAP}(?:{RGB}|{HEX}))?', f'{NAME}{COMMA}{VALUE}')  # _classes.csv of Roboflow


class ClassSet(NamedTuple):
    """Names and colours of the classes 0, 1, 2, ..., and what stands for void in masks.
    names: tuple of str. colours: tuple of (R, G, B) in 0..255.
    void: tuple of (value, (R, G, B)), each None if it is not named; 255 and (224, 224, 192) are void in any case."""
    names: tuple
    colours: tuple
    void: tuple = ()

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

    @property
    def label_of_value(self):
        """uint8 [256]: the labels of a mask's values. The classes have the lowest values that are not void."""
        void = {IGNORE_LABEL, *(value for value, _ in self.void if value is not None)}
        labels = np.full(256, NO_CLASS, np.uint8)
        labels[[value for value in range(256) if value not in void][:len(self.names)]] = range(len(self.names))
        labels[list(void)] = IGNORE_LABEL
        return labels

    @property
    def label_of_colour(self):
        """Dict of (R, G, B) to the label that it means in a mask."""
        void = dict.fromkeys([VOID_COLOUR, *(colour for _, colour in self.void if colour)], IGNORE_LABEL)
        return {**void, **{colour: label for label, colour in enumerate(self.colours)}}

    @property
    def has_own_colours(self):
        """Whether masks must have these colours: VOC's classes, or colours from a file."""
        return (self.names == VOC.names or self.colours != make_class_set(self.names).colours
                or any(colour for _, colour in self.void))


def make_class_set(names, colours=None, void=()):
    """A ClassSet; `colours` is a list of (R, G, B), or None for a class that gets VOC's colour.
    Black is reserved for the background: without one, class 0 gets VOC's second colour, and so on."""
    first = 0 if names[0] == 'background' else 1
    default = utils.voc_palette()[first:first + len(names)].tolist()
    colours = colours or [None] * len(names)
    return ClassSet(tuple(names), tuple(tuple(own or fallback) for own, fallback in zip(colours, default)), tuple(void))


VOC = make_class_set((
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'))


def read_classes(path):
    """Reads a file of names in one of the forms above, without its comments; docs/data.md explains them.
    Returns a ClassSet. UserError: the file is missing or of another form, or a name or a colour occurs twice."""
    try:
        lines = utils.read_lines(path, 'name a text file with one class a line')
        lines = [re.sub(r'^#.*|\s#\s.*', '', line).strip() for line in lines]
        return arrange_rows(find_rows([line for line in lines if line]))
    except UserError as error:
        raise UserError(f'--classes {error}') from None
    except ValueError as error:
        raise UserError(f'--classes {path}: {error}') from None


def find_rows(lines):
    """The named groups of each line's match with the form of all, list of dict; ValueError if there is none."""
    for form in TABLES:
        rows = [re.fullmatch(form, line) for line in lines]
        if len(rows) > 1 and all(rows[1:]):
            rows = [row.groupdict() for row in rows if row]
            # CVAT sorts by name; its masks are read by their colours, so that the background may come first.
            return sorted(rows, key=lambda row: not is_background(row['name'])) if form == TABLES[0] else rows
    rows = [re.fullmatch(LIST, line) for line in lines]
    for line, row in zip(lines, rows):
        if row is None:
            raise ValueError(f'{line[:80]!r} is not a class; give one a line, as NAME or NAME #rrggbb, in the order of '
                             "the masks' values, or a file of CVAT, labelme or Roboflow, or a table NAME,R,G,B")
        if not row['hex'] and re.search(r'\s#\S*$', row['name']):
            raise ValueError(f'{line[:80]!r} does not end in a colour; give six digits, such as #80a0ff')
    return [row.groupdict() for row in rows]


def arrange_rows(rows):
    """The ClassSet of find_rows' result; ValueError if it cannot be one.
    The value of a row without one is its place."""
    void, found = [], []
    for row in rows:
        name, place = ' '.join(row['name'].split()), len(found) + sum(value is not None for value, _ in void)
        colour = (tuple(map(int, re.findall(r'\d+', row['rgb']))) if row.get('rgb') else
                  tuple(bytes.fromhex(row['hex'][1:])) if row.get('hex') else None)
        if colour and max(colour) > 255:
            raise ValueError(f'{name} has the colour {row["rgb"]}; give numbers from 0 to 255')
        value = int(row.get('value') or place)
        if name.lower() in VOID_NAMES:  # labelme's value for __ignore__ is -1, stored as 255
            void.append((value if 0 <= value < 255 and name != '__ignore__' else None, colour))
        else:
            found.append((value, 'background' if is_background(name) else name, colour))
    found.sort(key=lambda each: each[0])
    class_set = check_class_set([name for _, name, _ in found], [colour for *_, colour in found], void)
    values = [value for value, _, _ in found]
    if values != np.flatnonzero(class_set.label_of_value < NO_CLASS).tolist():
        raise ValueError(f'has the values {str(values)[1:-1]}; give 0, 1, 2, ... without a gap')
    return class_set


def is_background(name):
    """Whether an annotation tool means the background by a class's name."""
    return name.lower().strip('_') == 'background'


def check_class_set(names, colours=None, void=()):
    """make_class_set of names from a file; ValueError with one line if they are not a class set."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(f'holds {len(names)} classes beside void; give 2 to {MAX_CLASSES}, one a line')
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= 60 or any(map(utils.is_control, name)):
            raise ValueError(f'{str(name)[:80]!r} is not a name; give 1 to 60 letters')
    class_set = make_class_set(names, colours, void)
    colours = (*class_set.colours, *(colour for _, colour in class_set.void if colour))
    for what, values in (('name', class_set.names), ('colour', colours)):
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f'the {what} {twice[0]} stands for two classes; give each its own')
    if VOID_COLOUR in class_set.colours:
        raise ValueError(f'the colour {VOID_COLOUR} is that of void; give another')
    return class_set


def describe_lack(class_set, pixels, needed):
    """What is wrong with masks of fewer than `needed` classes, one line, '' if nothing is. `pixels`: ints by label."""
    present = [f'{name} ({label})' for label, (name, count) in enumerate(zip(class_set.names, pixels)) if count]
    return '' if len(present) >= needed else (
        f'the masks hold only {" and ".join([*present, "void (255)"])}; they must hold the values of at least two '
        'classes: for two, 0 and 1 instead of 0 and 255, which is void')


def as_json(class_set):
    """A ClassSet as a list of {'name': str, 'colour': '#rrggbb'}."""
    return [{'name': name, 'colour': '#{:02x}{:02x}{:02x}'.format(*colour)}
            for name, colour in zip(class_set.names, class_set.colours)]


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


def side_file(record):
    """The path of a record's side file, str."""
    return f'{record}.json'


def save_side_file(path, class_set, images, pixels):
    """Writes what a record holds: classes (as_json), `images`, int, and `pixels`, int64 [256] by label."""
    count = len(class_set.names)
    utils.save_json(path, {'classes': as_json(class_set), 'images': int(images),
                           'pixels': np.asarray(pixels)[[*range(count), IGNORE_LABEL]].tolist()})


def read_side_file(record):
    """A record's side file, dict with `classes` as ClassSet; None if it has none; UserError if it is damaged."""
    path = side_file(record)
    try:
        with utils.open_file(path, encoding='utf-8') as file:
            content = json.load(file)
        content['classes'] = from_json(content['classes'])
        counts = [content['images'], *content['pixels']]
        if len(counts) != len(content['classes'].names) + 2 or any(
                not isinstance(count, int) or count < 0 for count in counts):
            raise ValueError('holds other counts')
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = getattr(error, 'strerror', 'damaged')
        raise UserError(f'{path}: {reason}; mend it, or write the record again with convert_fcn_dataset.py') from None


def of_record(record, classes_file=None):
    """The ClassSet of a record: that of its side file, else of --classes, else VOC's; UserError if the two differ."""
    wanted = read_classes(classes_file) if classes_file else None
    stored = read_side_file(record)
    if stored and wanted:
        check_same(wanted, f'--classes {classes_file}', stored['classes'], side_file(record))
    return stored['classes'] if stored else wanted or VOC


def name_record(record):
    """A record's path for messages about its classes; if its side file is missing, with that and the cure."""
    path = side_file(record)
    return record if os.path.exists(path) else f'{record}, without {path} (copy it as well, or give --classes FILE),'


def describe(class_set, file, classes_file=None):
    """One line: a ClassSet, and where its names come from: `file`, --classes, or VOC."""
    source = file if os.path.exists(file) else f'--classes {classes_file}' if classes_file else (
        f'VOC, because {file} is missing; --classes FILE names others')
    names = class_set.names if len(class_set.names) < 6 else (*class_set.names[:3], '...', class_set.names[-1])
    return f'classes: {len(class_set.names)} ({", ".join(names)}), from {source}'


def of_run(settings, number_of_classes, checkpoint, classes_file=None):
    """The ClassSet of a checkpoint: that of --classes, which must have its run's names; else its run's; else VOC's.
    UserError if they differ from each other, or from the number of classes of the checkpoint's variables."""
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


def check_same(one, its_place, other, others_place):
    """Raises UserError, which names the first difference, unless the names of two ClassSets are the same."""
    pairs = itertools.zip_longest(one.names, other.names, fillvalue='not there')
    for number, (name, others) in enumerate(pairs):
        if name != others:
            raise UserError(f'{its_place} has {len(one.names)} classes, of which number {number} is {name}; '
                            f'{others_place} has {len(other.names)} classes, of which number {number} is {others}: '
                            'take data and network of the same classes')
