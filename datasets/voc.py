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
from typing import NamedTuple

import numpy as np

import utils
from datasets import pictures
from datasets.pictures import BadFileError

ROLES = ('train', 'val')
SMALL_SIDE = 32  # pixels that are one in the network's coarsest map


class Finding(NamedTuple):
    """One thing that is wrong or odd: its kind in two or three words, and one line that names the file or the list."""
    kind: str
    message: str


class Split(NamedTuple):
    """The train or the val part of a data set."""
    role: str  # of ROLES
    list_path: str  # text file, one id a line
    image_dirs: list  # the first of them that holds an image counts
    label_dir: str
    data_dirs: list  # links may not lead out of these
    sbd_dir: str | None = None  # its folder cls has the masks that are not in label_dir

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
    label_path: str
    image: pictures.ImageFile | None
    labels: np.ndarray | None  # uint8 [H, W]
    faults: list  # of Finding; empty if the pair can be used


# ------------------------------------------------------------------------------------------- folders


def find_splits(data_dir, list_names, label_dirs, sbd_dir=None):
    """Finds the train and the val split.

    Args:
        data_dir: str, VOC's folder.
        list_names: two str, of files ImageSets/Segmentation/NAME.txt.
        label_dirs: two str, folders of the masks in data_dir.
        sbd_dir: str or None, SBD's folder benchmark_RELEASE/dataset, which joins the train split.

    Returns:
        list of two Split.

    Raises:
        utils.UserError: a folder is missing.
    """
    image_dir = os.path.join(data_dir, 'JPEGImages')
    label_dirs = [os.path.join(data_dir, name) for name in label_dirs]
    check_folder(data_dir, f'--data_dir {data_dir} is not a folder: unpack VOC2012 there, or name the folder that '
                           'holds JPEGImages')
    check_folder(image_dir, f'{image_dir} is not a folder: --data_dir must name the folder that holds JPEGImages')
    for role, path in zip(ROLES, label_dirs):
        check_folder(path, f'{path} is not a folder: name the one with the masks by --{role}_label_dir')
    paths = [os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{name}.txt') for name in list_names]
    train, val = (Split(*of_role, [data_dir]) for of_role in zip(ROLES, paths, [[image_dir]] * 2, label_dirs))
    if sbd_dir:
        check_folder(os.path.join(sbd_dir, 'cls'), f'--sbd_dir {sbd_dir}: has no folder cls; name the folder '
                                                   'benchmark_RELEASE/dataset of SBD')
        train = train._replace(image_dirs=[image_dir, os.path.join(sbd_dir, 'img')], data_dirs=[data_dir, sbd_dir],
                               sbd_dir=sbd_dir)
    return [train, val]


def check_folder(path, message):
    """Raises UserError unless `path` is a folder."""
    if not os.path.isdir(path):
        raise utils.UserError(message)


# ------------------------------------------------------------------------------------------- lists


def read_lists(splits):
    """Reads the lists of train and val and, if SBD takes part, its two lists, whose ids join train.

    SBD's images of val are left out. What SBD adds is printed.

    Returns:
        Lists.

    Raises:
        utils.UserError: a list is missing, empty or not text.
    """
    sources = [(split.list_path, f'name another list by --{split.role}_split, or mend --data_dir') for split in splits]
    if sbd_dir := splits[0].sbd_dir:
        sources += [(os.path.join(sbd_dir, f'{role}.txt'), 'name the folder benchmark_RELEASE/dataset of SBD by '
                                                           '--sbd_dir') for role in ROLES]
    lines = [read_lines(*source) for source in sources]
    faults = [fault for (path, _), of_list in zip(sources, lines) for fault in find_list_faults(path, of_list)]
    ids = [list(dict.fromkeys(filter(is_id, of_list))) for of_list in lines]
    faults += find_overlap(splits, *ids[:2])
    added = add_sbd(ids[0], ids[1], [*ids[2], *ids[3]]) if sbd_dir else []
    return Lists([ids[0] + added, ids[1]], [len(lines[0]) + len(added), len(lines[1])], faults)


def read_ids(list_path, cure):
    """The ids of one list in its order, list of str.

    UserError if it is missing (`cure` is what to do then), empty or not text, or has an unusable or a repeated id.
    """
    ids = read_lines(list_path, cure)
    for fault in find_list_faults(list_path, ids):
        raise utils.UserError(fault.message)
    return ids


def read_lines(list_path, cure):
    """The lines of a list that are not empty, list of str; UserError as of read_ids, whatever the ids are."""
    try:
        with utils.open_file(list_path, encoding='utf-8-sig') as file:  # some editors begin with a byte order mark
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise utils.UserError(f'{list_path}: {error.strerror}: {cure}') from error
    except UnicodeDecodeError as error:
        raise utils.UserError(f'{list_path} is not UTF-8 text: it must hold one image id a line') from error
    if not lines:
        raise utils.UserError(f'{list_path} is empty: it must hold one image id a line')
    return lines


def find_list_faults(list_path, lines):
    """Yields a Finding for each line that is not an id, and one for the repeated ids."""
    for line in lines:
        if not is_id(line):
            yield Finding('not an id', f'{list_path}: {line[:80]!r} is not an id: give the file name alone, without '
                                       'folder and ending')
    repeated = [line for line, times in collections.Counter(lines).items() if times > 1 and is_id(line)]
    if repeated:
        yield Finding('repeated id', f'{list_path} holds {repeated[0]} more than once: remove what is doubled '
                                     f'({len(repeated)} in all)')


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
    known, in_val = {*train_ids, *val_ids}, set(val_ids)
    candidates = list(dict.fromkeys(sbd_ids))
    added = [image_id for image_id in candidates if image_id not in known]
    left_out = len(candidates) - len(added)
    left_out_val = len(in_val.intersection(candidates))
    print(f'train: {len(train_ids):,} of VOC + {len(added):,} of SBD ({left_out:,} left out: {left_out_val:,} in val, '
          f'{left_out - left_out_val:,} in train)')
    return added


# ------------------------------------------------------------------------------------------- an image and its mask


def read_pair(split, image_id, class_set, scale):
    """Reads an image and its mask, and checks them.

    Args:
        split: Split. image_id: str. class_set: classes.ClassSet.
        scale: float, by which they will be scaled.

    Returns:
        Pair.
    """
    image_paths, label_path = find_images(split, image_id), find_label(split, image_id)
    image, labels, faults = None, None, []
    try:
        image = read_image(split, image_paths, coarse=scale == 1)
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    try:
        pictures.check_file(label_path, split.data_dirs)
        labels = pictures.read_label(label_path, class_set)
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    if image and labels is not None and image.size != labels.shape[::-1]:
        sizes = '{} x {} pixels, its image {} x {}'.format(*labels.shape[::-1], *image.size)
        faults.append(Finding('size mismatch', f'{label_path}: is {sizes}'))
    if image:
        faults += find_scaling_faults(image_paths[0], image.size, scale)
    return Pair(image_paths[0], label_path, image, labels, faults)


def find_images(split, image_id):
    """The paths of an image, list of str: normally one; if there is none, that of a JPEG."""
    for folder in split.image_dirs:
        paths = [os.path.join(folder, image_id + ending) for ending in pictures.FORMATS]
        found = [path for path in paths if os.path.lexists(path)]
        if found:
            return found
    return paths[:1]


def find_label(split, image_id):
    """The path of an image's mask: VOC's own, which has void borders, or SBD's if that is missing."""
    path = os.path.join(split.label_dir, image_id + '.png')
    if split.sbd_dir and not os.path.lexists(path):
        return os.path.join(split.sbd_dir, 'cls', image_id + '.mat')
    return path


def read_image(split, paths, coarse):
    """Reads the image at find_images' path, see pictures.read_image; BadFileError if there are two."""
    if len(paths) > 1:
        raise BadFileError(f'{paths[0]}: {os.path.basename(paths[1])} is there as well; keep one of them', 'two images')
    pictures.check_file(paths[0], split.data_dirs)
    return pictures.read_image(paths[0], coarse)


def find_scaling_faults(path, size, scale):
    """Yields a Finding if `scale` makes an image, (width, height), too small to learn from."""
    width, height = pictures.scaled_size(size, scale)
    if min(width, height) < SMALL_SIDE <= min(size):  # an image that was small before is not --scale's fault
        yield Finding('too small', f'--scale {scale:g}: makes {path} {width} x {height} pixels, and fewer than '
                                   f'{SMALL_SIDE} on a side are one to the network; take a larger one')


def map_in_order(function, items, num_workers):
    """Yields function(item) in the order of the items, computed by threads a few items ahead.

    Threads suffice because Pillow and zlib release the interpreter while they work. At most 3 * num_workers results
    are held, so that memory does not grow with the data set.
    """
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 3 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
