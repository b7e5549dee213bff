"""A data set in VOC's layout, with SBD beside it if wanted: its lists, its folders, an image and its mask.

    train, val = voc.find_splits('VOCdevkit/VOC2012', ('train', 'val'), ('SegmentationClass', 'SegmentationClass'))
    lists = voc.read_lists((train, val))
    pair = voc.read_pair(train, lists.ids[0][0], classes.VOC, scale=1.0)

Layout: the PASCAL VOC development kit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/). SBD, the Semantic Boundaries
Dataset, has masks without void borders for 11,355 images of VOC2011, as img/, cls/, train.txt and val.txt.
"""
import collections
import concurrent.futures
import os
import re
from typing import NamedTuple

import utils
from datasets import photos, pictures
from datasets.pictures import BadFileError

ROLES = ('train', 'val')
SMALL_SIDE = 32  # pixels that are one in the network's coarsest map
OTHER_LINES = (  # of lists that hold more than ids, and what they are
    (r'\S+\s+-?[01]', "an id with 1 or -1, as VOC's lists of one class have; take a list of ImageSets/Segmentation"),
    (r'#.*', 'a comment; remove it'),
    (r'["\'].*', 'in quotes; remove them'),
    (r'.*[/\\].*[\s,;].*[/\\].*', 'two paths; give the file name of the image alone, without folder and ending'),
    (r'.*[/\\].*', 'a path; give the file name alone, without folder and ending'),
    (r'.*\.(?i:jpe?g|png|bmp|mat)', 'a file name with its ending; remove the ending'),
    (r'.*[\s,;].*', 'more than one word; give the id alone'),
    (r'.*', 'no name of a file; give the file name alone, without folder and ending'))


class Finding(NamedTuple):
    """One thing that is wrong or odd: its kind in two or three words, and one line that names the file or the list."""
    kind: str
    message: str


class Split(NamedTuple):
    """The train or the val part of a data set."""
    role: str  # of ROLES
    list_path: str  # text file, one id a line
    image_dir: str
    label_dir: str
    images: dict  # of id to list of paths, as list_files
    masks: dict
    sbd_dir: str | None = None

    @property
    def list_name(self):
        return os.path.basename(self.list_path) + (' + SBD' if self.sbd_dir else '')


class Lists(NamedTuple):
    """What the lists of train and val hold, SBD's included."""
    ids: list  # two lists of str, each id once
    listed: list  # two ints, their lines, unusable ones and repetitions included
    faults: list  # of Finding


class Pair(NamedTuple):
    """An image and its mask, as far as they can be read."""
    image_path: str
    image: pictures.ImageFile | None
    mask: pictures.Mask | None
    faults: list  # of Finding; empty if the pair can be used
    notes: list  # of Finding


def find_splits(data_dir, list_names, label_dirs, sbd_dir=None):
    """The train and the val Split of VOC's folder; UserError if a folder is missing.
    list_names: two, in ImageSets/Segmentation. label_dirs: two, of the masks. sbd_dir: SBD's benchmark_RELEASE/dataset,
    which joins train."""
    check_folder(data_dir, f'--data_dir {data_dir} is not a folder: unpack VOC2012 there, or name the folder that '
                           'holds JPEGImages')
    image_dir = os.path.join(data_dir, 'JPEGImages')
    check_folder(image_dir, f'{image_dir} is not a folder: --data_dir must name the folder that holds JPEGImages')
    images, splits = list_files(image_dir, pictures.FORMATS), []
    for role, name, label_dir in zip(ROLES, list_names, label_dirs):
        path = os.path.join(data_dir, label_dir)
        check_folder(path, f'{path} is not a folder: name the one with the masks by --{role}_label_dir')
        splits.append(Split(role, os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{name}.txt'), image_dir, path,
                            images, list_files(path, ('.png', '.bmp'))))
    if sbd_dir:
        check_folder(os.path.join(sbd_dir, 'cls'), f'--sbd_dir {sbd_dir}: has no folder cls; name the folder '
                                                   'benchmark_RELEASE/dataset of SBD')
        # VOC's own files are taken where there are some, because its masks have void borders.
        splits[0] = splits[0]._replace(
            images={**list_files(os.path.join(sbd_dir, 'img'), pictures.FORMATS), **images},
            masks={**list_files(os.path.join(sbd_dir, 'cls'), ('.mat',)), **splits[0].masks}, sbd_dir=sbd_dir)
    return splits


def check_folder(path, message):
    """Raises UserError unless `path` is a folder."""
    if not os.path.isdir(path):
        raise utils.UserError(message)


def list_files(folder, endings):
    """The files of a folder with one of the endings, in upper or lower case: dict of name without ending to paths."""
    found = collections.defaultdict(list)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        stem, ending = os.path.splitext(name)
        if ending.lower() in endings:
            found[stem].append(os.path.join(folder, name))
    return dict(found)


def read_lists(splits):
    """Reads the lists of train and val and, if SBD takes part, its two lists, whose ids join train, as Lists.
    SBD's images of val are left out. What SBD adds is printed, and whether one list is that of both splits. UserError:
    a list is missing, empty or not text."""
    train, val = splits
    cures = ', or mend --data_dir', '; --val_split train scores on the images trained on'
    sources = [(split.list_path, f'name a list of one image id a line by --{split.role}_split{cure}')
               for split, cure in zip(splits, cures)]
    sources += [(os.path.join(train.sbd_dir, f'{role}.txt'), 'name the folder benchmark_RELEASE/dataset of SBD by '
                                                             '--sbd_dir') for role in ROLES if train.sbd_dir]
    lines = [utils.read_lines(*source) for source in sources]
    ids, faults = zip(*(find_ids(path, of_list, train.images) for (path, _), of_list in zip(sources, lines)))
    faults = sum(faults, [])
    if train.list_path == val.list_path:
        print(f'note: {val.list_path} is the list of both train and val: scores are those on images trained on')
    else:
        faults += find_overlap(splits, *ids[:2])
    added = add_sbd(ids[0], ids[1], [*ids[2], *ids[3]]) if train.sbd_dir else []
    return Lists([ids[0] + added, ids[1]], [len(lines[0]) + len(added), len(lines[1])], faults)


def read_ids(list_path, cure):
    """The ids of one list, list of str; UserError if it cannot be read (`cure` is what to do then), or has a fault."""
    ids, faults = find_ids(list_path, utils.read_lines(list_path, cure))
    for fault in faults:
        raise utils.UserError(fault.message)
    return ids


def find_ids(list_path, lines, images=None):
    """The ids in the lines of a list, list of str, and its faults, list of Finding: other lines, and repeated ids.
    A line that may be an id, but looks as if it held more than that, is one if `images`, a dict by id, has it."""
    ids, others = collections.Counter(), collections.defaultdict(list)
    for line in lines:
        form = next(number for number, (form, _) in enumerate(OTHER_LINES) if re.fullmatch(form, line, re.DOTALL))
        is_plain = images is None or line in images or form == len(OTHER_LINES) - 1
        if is_id(line) and is_plain:
            ids[line] += 1
        else:
            others[OTHER_LINES[form][1]].append(line)
    faults = [Finding('not an id', f'{list_path}: {found[0][:80]!r} is not an id, but {what} ({len(found)} such lines)')
              for what, found in others.items()]
    if repeated := [image_id for image_id, times in ids.items() if times > 1]:
        faults.append(Finding('repeated id', f'{list_path} holds {repeated[0]} more than once: remove what is doubled '
                                             f'({len(repeated)} in all)'))
    return list(ids), faults


def is_id(text):
    """Whether a line can only be the name of a file in a folder, and has no control characters."""
    return (text not in ('.', '..') and len(text) <= 200
            and not any(character in '/\\' or utils.is_control(character) for character in text))


def find_overlap(splits, train_ids, val_ids):
    """A Finding for each id in both splits: a score on images that were trained on is meaningless."""
    shared = sorted(set(train_ids) & set(val_ids))
    hint = " (SBD's own lists hold images of VOC's val)" if 'aug' in os.path.basename(splits[0].list_path) else ''
    return [Finding('id in both lists', f'{image_id} is in both {splits[0].list_path} and {splits[1].list_path}: '
                                        f'remove it from one ({len(shared)} in all){hint}') for image_id in shared]


def add_sbd(train_ids, val_ids, sbd_ids):
    """The ids of SBD, list of str, that are neither in VOC's train nor in its val list; prints their number."""
    known, candidates = {*train_ids, *val_ids}, list(dict.fromkeys(sbd_ids))
    added = [image_id for image_id in candidates if image_id not in known]
    left_out, left_out_val = len(candidates) - len(added), len(set(val_ids).intersection(candidates))
    print(f'train: {len(train_ids):,} of VOC + {len(added):,} of SBD ({left_out:,} left out: {left_out_val:,} in val, '
          f'{left_out - left_out_val:,} in train)')
    return added


def read_pair(split, image_id, class_set, scale):
    """Reads an image and its mask as a Pair, turns the image as viewers show it, and checks them.
    `class_set`: classes.ClassSet. `scale`: float, by which they will be scaled."""
    image_path, image, faults = read_file(split, split.images, split.image_dir, image_id, scale,
                                          lambda path: pictures.read_image(path, scale))
    label_path, mask, mask_faults = read_file(split, split.masks, split.label_dir, image_id, scale,
                                              lambda path: pictures.read_mask(path, class_set, scale))
    notes = [Finding('odd palette', f'{label_path}: {mask.oddity}')] if mask and mask.oddity else []
    if image and 2 <= image.orientation <= 8:
        image, note = turn_image(image_path, image, mask)
        notes.append(note)
    faults += mask_faults
    if image and mask and image.size != mask.labels.shape[::-1]:
        sizes = '{} x {} pixels, its image {} x {}'.format(*mask.labels.shape[::-1], *image.size)
        turned = f', turned by its EXIF orientation {image.orientation}' if image.orientation > 1 else ''
        faults.append(Finding('size mismatch', f'{label_path}: is {sizes}{turned}'))
    width, height = pictures.scaled_size(image.size, scale) if image else (0, 0)
    if image and min(width, height) < SMALL_SIDE <= min(image.size):  # else --scale is not the cause
        faults.append(Finding('too small', f'--scale {scale:g}: makes {image_path} {width} x {height} pixels, and '
                                           f'fewer than {SMALL_SIDE} on a side are one to the network; take a larger '
                                           'one'))
    return Pair(image_path, image, mask, faults, notes)


def read_file(split, files, folder, image_id, scale, read):
    """Reads an image or a mask by `read`, function of a path, that `files`, dict by id, has, or else `folder`.
    Returns its path; the result, None if it cannot be used; list of Finding."""
    found = files.get(image_id) or [path for ending in photos.IMAGE_ENDINGS
                                    if os.path.lexists(path := os.path.join(folder, image_id + ending))]
    path = found[0] if found else os.path.join(folder, image_id + ('.jpg' if folder == split.image_dir else '.png'))
    try:
        if len(found) > 1:
            raise BadFileError(f'{path}: {os.path.basename(found[1])} is there as well; keep one of them', 'two images')
        pictures.check_file(path, filter(None, (os.path.dirname(split.image_dir), split.sbd_dir)), scale)
        return path, read(path), []
    except BadFileError as error:
        return path, None, [Finding(error.kind, str(error))]


def turn_image(path, image, mask):
    """Turns an ImageFile as viewers show it, unless only its stored size fits the mask; returns it, and a Finding."""
    upright, by_exif = pictures.turn_upright(image), f'by its EXIF orientation {image.orientation}'
    if mask and mask.labels.shape[::-1] == image.size != upright.size:
        return image, Finding('stored image', f'{path}: is used as it is stored, because its mask has that size; '
                                              f'viewers and predict.py turn it {by_exif}')
    return upright, Finding('turned image', f'{path}: is turned as viewers show it, {by_exif}, and encoded anew')


def list_findings(findings, title, shown):
    """Yields the lines for the terminal: of each kind of Finding the first `shown`, and how many there are.
    `title` ('fault', 'note') and the kind begin each line; without a title these are the messages alone."""
    by_kind = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.message)
    for kind, messages in by_kind.items():
        yield from (f'{title}: {kind}: {message}' if title else message for message in messages[:shown])
        if len(messages) > shown:
            yield f'{title or "fault"}: {kind}: {len(messages):,} in all; --check --check_json FILE lists them'


def map_in_order(function, items, num_workers):
    """Yields function(item) in the order of the items, computed by threads a few items ahead.
    Threads suffice because Pillow and zlib release the interpreter while they work. At most 3 * num_workers results
    are held, so that memory does not grow with the data set."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 3 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
