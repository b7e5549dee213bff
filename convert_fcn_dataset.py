"""Converts folders in the PASCAL VOC layout into fcn_train.record and fcn_val.record, the input of train.py.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --output_dir data

The JPEG's own bytes go in unchanged; a mask becomes an 8-bit grey PNG of class indices in which void stays 255. The
schema is in dataset.py. Layout and colour map of the masks: the PASCAL VOC development kit
(http://host.robots.ox.ac.uk/pascal/VOC/voc2012/). With the masks of SBD, converted to this layout:
`--train_split trainaug --train_label_dir SegmentationClassAug`. `--check` reads all and writes nothing; what it sees is
judged in dataset_doctor.py.
"""
import collections
import concurrent.futures
import contextlib
import functools
import io
import os
import stat
import struct
import sys
import warnings
import zlib
from typing import NamedTuple

import cv2
import google_crc32c
import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import dataset_doctor
import utils
from dataset import (
    CLASS_NAMES,
    IGNORE_LABEL,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    NUMBER_OF_CLASSES,
    has_endless_scans,
    make_example,
    write_example,
)
from dataset_doctor import Finding, Pair

# Masks are flat areas: run lengths pack VOC's a third smaller than zlib's level 1 and no slower.
PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
GREY, PALETTE = 0, 3  # colour types of a PNG
MAX_LIST_BYTES = 2 ** 25  # of a split file: two million ids of 16 letters


class BadFileError(Exception):
    """A picture that cannot be used. Its message is `path: reason`, one line; `kind` says it in two words."""

    def __init__(self, message, kind='unreadable'):
        super().__init__(message)
        self.kind = kind


class Split(NamedTuple):
    """One half of the data, as the flags name it."""
    role: str  # 'train' or 'val', as in --train_split and fcn_train.record
    list_path: str  # text file, one id a line
    data_dir: str  # what an id's files may not lead out of
    image_dir: str
    label_dir: str

    @property
    def record_name(self):
        return f'fcn_{self.role}.record'


class Label(NamedTuple):
    """A mask as the record has it."""
    png: bytes  # one channel, uint8 class index, 255 kept
    size: tuple  # width, height
    pixels: np.ndarray  # int64 [256], by value


class Converted(NamedTuple):
    """One pair: either its serialised example and pixel counts, or the problem that keeps it out."""
    example: bytes = b''
    pixels: np.ndarray | None = None  # int64 [256], by label value
    problem: str = ''


class Summary(NamedTuple):
    """What became of one split."""
    images: int
    pixels: np.ndarray  # int64 [256], by label value
    problems: list  # of str, `path: reason`


# ------------------------------------------------------------------------------------------- flags and split files


def parse_args(argv=None):
    """The flags, from `argv` (list of str) or the command line."""
    parser = utils.ArgumentParser('Converts a PASCAL VOC folder into fcn_train.record and fcn_val.record.')
    parser.add_argument('--data_dir', default=os.path.join('VOCdevkit', 'VOC2012'),
                        help='folder with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/')
    parser.add_argument('--output_dir', default='data', help='folder for the two records; made if it is missing')
    for role in ('train', 'val'):
        parser.add_argument(f'--{role}_split', default=role,
                            help=f'list of the {role} images: ImageSets/Segmentation/NAME.txt')
        parser.add_argument(f'--{role}_label_dir', default='SegmentationClass',
                            help=f'folder of the {role} masks in --data_dir; SegmentationClassAug for those of SBD')
    parser.add_argument('--num_workers', type=utils.positive_int, default=os.cpu_count() or 1,
                        help='threads that read and check pictures; the records do not depend on it')
    parser.add_argument('--skip_bad', action='store_true',
                        help='leave out pairs that cannot be used, instead of stopping without records')
    parser.add_argument('--check', action='store_true',
                        help='read everything, tell what is wrong, and write nothing; exit code 1 if something is')
    parser.add_argument('--check_json', metavar='FILE', help='with --check: write what was found to this file as well')
    args = parser.parse_args(argv)
    if args.check_json and not args.check:
        parser.error('--check_json goes with --check')
    return args


def find_splits(args):
    """The train and the val split of the flags, as two `Split`s; UserError where a folder is missing."""
    if not os.path.isdir(args.data_dir):
        raise utils.UserError(f'--data_dir {args.data_dir} is not a folder: unpack VOC2012 there, or name the folder '
                              'that holds JPEGImages')
    image_dir = os.path.join(args.data_dir, 'JPEGImages')
    if not os.path.isdir(image_dir):
        raise utils.UserError(f'{image_dir} is not a folder: --data_dir must name the folder that holds JPEGImages')
    splits = []
    for role in ('train', 'val'):
        label_dir = os.path.join(args.data_dir, getattr(args, f'{role}_label_dir'))
        if not os.path.isdir(label_dir):
            raise utils.UserError(f'{label_dir} is not a folder: name the one with the masks by --{role}_label_dir')
        list_name = getattr(args, f'{role}_split') + '.txt'
        list_path = os.path.join(args.data_dir, 'ImageSets', 'Segmentation', list_name)
        splits.append(Split(role, list_path, args.data_dir, image_dir, label_dir))
    return splits


def read_ids(split):
    """The ids of a split's file in its order, list of str.

    UserError if the file is missing, empty or no text, or holds an id twice or one that is no plain file name.
    """
    ids = read_list(split)
    for _, problem in find_list_problems(split, ids):
        raise utils.UserError(problem)
    return ids


def read_list(split):
    """The lines of a split's file that are not empty, list of str; UserError if it is missing, empty or no text."""
    try:
        if os.path.exists(split.list_path) and not os.path.isfile(split.list_path):  # a pipe would be waited for
            raise utils.UserError(f'{split.list_path} is no file: it must hold one image id a line')
        with open(split.list_path, encoding='utf-8-sig') as file:  # some editors put a byte order mark in front
            if os.fstat(file.fileno()).st_size > MAX_LIST_BYTES:
                raise utils.UserError(f'{split.list_path} is larger than {MAX_LIST_BYTES >> 20} MB: it must hold one '
                                      'image id a line')
            ids = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise utils.UserError(f'{split.list_path}: {error.strerror}: name another list by --{split.role}_split, or '
                              'mend --data_dir') from error
    except UnicodeDecodeError as error:
        raise utils.UserError(f'{split.list_path} is not UTF-8 text: it must hold one image id a line') from error
    if not ids:
        raise utils.UserError(f'{split.list_path} is empty: it must hold one image id a line')
    return ids


def find_list_problems(split, ids):
    """Yields (kind, message) for every line that is no id or could lead out of the data folder, and all that repeat."""
    for image_id in filter(lambda image_id: not is_id(image_id), ids):
        shown = image_id if len(image_id) < 80 else image_id[:80] + '...'
        yield 'not an id', (f'{split.list_path}: {shown!r} is not an id: give the file name alone, without folder and '
                            'ending')
    repeated = [image_id for image_id, times in collections.Counter(ids).items() if times > 1 and is_id(image_id)]
    if repeated:
        yield 'repeated id', (f'{split.list_path} holds {repeated[0]} more than once: remove what is doubled '
                              f'({len(repeated)} in all)')


def is_id(text):
    """Whether a line can be the name of a file in a folder, and of nothing elsewhere; nor may it steer a terminal."""
    return (text not in ('.', '..') and len(text) <= 200
            and not any(character in '/\\' or utils.is_control(character) for character in text))


def find_overlap(splits, ids_by_split):
    """A problem, str, for each image that is in both splits: a score on images seen in training says nothing."""
    train_ids, val_ids = ids_by_split
    shared = sorted(set(train_ids) & set(val_ids))
    hint = " (SBD's own lists hold images of VOC's val)" if 'aug' in os.path.basename(splits[0].list_path) else ''
    return [f'{image_id} is in both {splits[0].list_path} and {splits[1].list_path}: remove it from one '
            f'({len(shared)} in all){hint}' for image_id in shared]


def check_disjoint(splits, ids_by_split):
    """UserError if an image is in both splits."""
    for problem in find_overlap(splits, ids_by_split):
        raise utils.UserError(problem)


# ------------------------------------------------------------------------------------------- one pair


def check_file(path, data_dir):
    """BadFileError unless `path` is a file of a sane size that lies, once links are followed, where it may.

    A link to a picture may not lead out of the data folder: a data set from elsewhere could have other files of this
    machine copied into the records. The data folder itself and the folders in it may be links, as they often are.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            real, folder = os.path.realpath(path), os.path.dirname(path)
            if not any(real.startswith(os.path.join(os.path.realpath(root), '')) for root in (data_dir, folder)):
                raise BadFileError(f'{path}: is a link that leads out of the data folder; copy the file, or link the '
                                   'whole folder', 'link')
            status = os.stat(path)
    except OSError as error:
        kind = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
        raise BadFileError(f'{path}: {error.strerror}', kind) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(f'{path}: is no file')
    if status.st_size > MAX_FILE_BYTES:
        raise BadFileError(f'{path}: is larger than {MAX_FILE_BYTES >> 20} MB', 'too large')


def read_picture(path, kind):
    """Reads a file and decodes it to its last byte.

    Args:
        path: str.
        kind: 'JPEG' or 'PNG', the only format that is accepted.

    Returns:
        (bytes of the file, PIL image, its (width, height)). Of a JPEG, which nobody looks at here, the image may be
        smaller than that. BadFileError if the file is missing, of another format, truncated or damaged.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
        picture = Image.open(io.BytesIO(data), formats=[kind])
        size = picture.size
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if picture.info.get('progressive') and has_endless_scans(data):
            raise ValueError(f'has more than {MAX_SCANS} scans; save it anew')
        if kind == 'PNG':
            picture.verify()  # the checksums, which load() passes over
            picture = Image.open(io.BytesIO(data), formats=[kind])
        picture.draft(None, (1, 1))  # of a JPEG all bytes are decoded, but only an eighth made: enough to check it
        picture.load()
    except UnidentifiedImageError as error:
        raise BadFileError(f'{path}: is not a {kind} file, or its header is damaged') from error
    except Image.DecompressionBombError as error:
        reason = f'more than {MAX_PIXELS // 10 ** 6} million pixels; scale it down'
        raise BadFileError(f'{path}: {reason}', 'too large') from error
    except Exception as error:  # a decoder may raise nearly anything on damaged bytes
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise BadFileError(f'{path}: {" ".join(reason.split())}') from error
    return data, picture, size


def read_label(path):
    """Reads a mask: palette and grey values are class indices, colours go through the VOC colour map.

    Returns:
        `Label`. BadFileError for a file, a colour or a class that cannot be used.
    """
    data, picture, size = read_picture(path, 'PNG')
    bit_depth, colour_type = data[24], data[25]  # of the IHDR chunk, which the PNG standard puts first
    if bit_depth == 8 and colour_type in (GREY, PALETTE):
        png = as_grey_png(data)
    else:
        labels = decode_label(picture, bit_depth, path)
        png, picture = cv2.imencode('.png', labels, PNG_OPTIONS)[1].tobytes(), Image.fromarray(labels)
    pixels = np.array(picture.histogram())
    wrong = np.flatnonzero(pixels[NUMBER_OF_CLASSES:IGNORE_LABEL])
    if wrong.size:
        raise wrong_class(path, NUMBER_OF_CLASSES + wrong[0])
    return Label(png, size, pixels)


def as_grey_png(data):
    """A PNG of 8-bit palette indices or greys as one of greys: the same compressed pixels behind another header.

    So a mask need not be compressed anew, which would take as long as reading and checking it. Source: the chapters
    "Chunk layout" and "IHDR Image header" of the W3C's PNG specification.
    """
    chunks, position, kind = [data[:8]], 8, b''
    while kind != b'IEND':  # what follows is no part of the picture
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 12 + length
        if kind == b'IHDR':
            header = kind + data[position + 8:position + 17] + bytes([GREY]) + data[position + 18:position + 21]
            chunks.append(struct.pack('>I', length) + header + struct.pack('>I', zlib.crc32(header)))
        elif kind in (b'IDAT', b'IEND'):
            chunks.append(data[position:end])
        position = end
    return b''.join(chunks)


def decode_label(picture, bit_depth, path):
    """A mask of any kind but 8-bit palette and grey, as uint8 [H, W]; BadFileError as of read_label."""
    if picture.mode in ('RGB', 'RGBA'):
        return decode_colours(np.asarray(picture)[:, :, :3], path)
    if picture.mode not in ('P', 'L', '1', 'I', 'I;16'):
        raise BadFileError(f'{path}: a mask of mode {picture.mode}; save it with a palette, in grey or in RGB',
                           'kind of mask')
    labels = np.asarray(picture)
    if picture.mode == 'L' and bit_depth < 8:
        labels = labels // (255 // (2 ** bit_depth - 1))  # Pillow stretches 2 and 4 bits of grey to 0..255
    if labels.max() > IGNORE_LABEL:
        raise wrong_class(path, labels[labels > IGNORE_LABEL].min())
    return labels.astype(np.uint8)


def wrong_class(path, value):
    """The BadFileError of a mask with a value that is no class."""
    return BadFileError(f'{path}: class {value} is neither 0..{NUMBER_OF_CLASSES - 1} nor {IGNORE_LABEL}',
                        'class out of range')


def decode_colours(colours, path):
    """Turns a mask in VOC colours into class indices.

    Args:
        colours: uint8 RGB [H, W, 3].
        path: str, for the message.

    Returns:
        uint8 [H, W], 0..20, and 255 where the mask is (224, 224, 192). BadFileError names a colour outside the map.
    """
    values = [*range(NUMBER_OF_CLASSES), IGNORE_LABEL]
    unmapped = NUMBER_OF_CLASSES  # a value that no pixel may keep
    packed = pack_colours(colours)
    labels = np.full(packed.shape, unmapped, np.uint8)
    for value, colour in zip(values, pack_colours(utils.voc_palette()[values])):
        labels[packed == colour] = value
    unknown = packed[labels == unmapped]
    if unknown.size:
        colour = tuple(int(unknown[0]) >> shift & 255 for shift in (16, 8, 0))
        raise BadFileError(f'{path}: colour {colour} is not in the VOC colour map', 'unknown colour')
    return labels


def pack_colours(colours):
    """uint8 RGB [..., 3] to one int32 [...] a colour."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def find_pair(split, image_id):
    """The paths of an image and its mask."""
    return os.path.join(split.image_dir, image_id + '.jpg'), os.path.join(split.label_dir, image_id + '.png')


def describe_mismatch(label_path, image_size, label_size):
    """The problem of a mask whose image has another size; both (width, height)."""
    return '{}: is {} x {} pixels, its image {} x {}'.format(label_path, *label_size, *image_size)


def convert_pair(split, image_id):
    """One image and its mask as `Converted`; a pair that cannot be used becomes its `problem`, never an exception."""
    image_path, label_path = find_pair(split, image_id)
    try:
        check_file(image_path, split.data_dir)
        check_file(label_path, split.data_dir)
        jpeg_bytes, _, (image_width, image_height) = read_picture(image_path, 'JPEG')
        label = read_label(label_path)
    except BadFileError as error:
        return Converted(problem=str(error))
    width, height = label.size
    if (image_width, image_height) != (width, height):
        return Converted(problem=describe_mismatch(label_path, (image_width, image_height), label.size))
    return Converted(make_example(image_id.encode(), jpeg_bytes, label.png, height, width), label.pixels)


# ------------------------------------------------------------------------------------------- a whole split


def map_in_order(function, items, num_workers):
    """Yields function(item) in the order of the items, computed by threads a few items ahead.

    Threads do, because Pillow and zlib let go of the interpreter while they work. No more than 3 * num_workers results
    are held, so memory does not grow with the data set.
    """
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 3 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


# ------------------------------------------------------------------------------------------- --check


def look_at_pair(split, image_id):
    """An image and its mask as a `dataset_doctor.Pair`; whatever is wrong becomes its faults, never an exception."""
    image_path, label_path = find_pair(split, image_id)
    faults, image, mask = [], {}, {}
    try:
        check_file(image_path, split.data_dir)
        image = look_at_image(image_path)
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    try:
        check_file(label_path, split.data_dir)
        label = read_label(label_path)
        mask = look_at_mask(label_path, label.pixels)
        if image and image['size'] != label.size:
            faults.append(Finding('size mismatch', describe_mismatch(label_path, image['size'], label.size)))
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    return Pair(image_id, image_path, faults, **image, **mask)


def look_at_image(path):
    """`size` and `checksum` of a Pair; BadFileError if the image cannot be used."""
    _, coarse, size = read_picture(path, 'JPEG')
    return {'size': size, 'checksum': google_crc32c.value(coarse.tobytes())}


def look_at_mask(path, pixels):
    """`mask_kind`, `pixels` and `odd_palette` of a Pair, from a mask's path and its Label's pixels."""
    with Image.open(path, formats=['PNG']) as picture:
        kind = {'P': 'palette', 'RGB': 'colour', 'RGBA': 'colour'}.get(picture.mode, 'grey')
    return {'mask_kind': kind, 'pixels': pixels,
            'odd_palette': dataset_doctor.describe_palette(path, pixels) if kind == 'palette' else ''}


def check(splits, num_workers):
    """Looks at all that the lists name, and at the lists; stops at nothing but a list that cannot be read.

    Returns:
        `dataset_doctor.Diagnosis`.
    """
    lists = [read_list(split) for split in splits]
    faults = [Finding(*problem) for split, ids in zip(splits, lists) for problem in find_list_problems(split, ids)]
    usable = [list(dict.fromkeys(filter(is_id, ids))) for ids in lists]
    faults += [Finding('id in both lists', problem) for problem in find_overlap(splits, usable)]
    pairs = []
    for split, ids in zip(splits, usable):
        results = map_in_order(functools.partial(look_at_pair, split), ids, num_workers)
        name = os.path.basename(split.list_path)
        pairs.append(list(tqdm(results, desc=f'looking at {name}', total=len(ids), unit='image')))
    return dataset_doctor.diagnose([os.path.basename(split.list_path) for split in splits], list(map(len, lists)),
                                   faults, pairs, count_unlisted(splits, usable))


def count_unlisted(splits, ids_by_split):
    """How many masks of the splits' folders are in neither list, int."""
    folders = {split.label_dir for split in splits}
    known = {image_id + '.png' for ids in ids_by_split for image_id in ids}
    return sum(name.endswith('.png') and name not in known for folder in folders for name in os.listdir(folder))


def tell(splits, diagnosis, json_path):
    """Prints a diagnosis, and writes it to `json_path` if there is one; UserError if it has faults."""
    summaries = [Summary(sum(not pair.faults for pair in pairs), dataset_doctor.sum_pixels(pairs), [])
                 for pairs in diagnosis.pairs]
    print(format_table(diagnosis.lists, summaries))
    print(dataset_doctor.format_diagnosis(diagnosis))
    if json_path:
        try:
            utils.save_json(json_path, dataset_doctor.as_json(diagnosis))
        except OSError as error:
            raise utils.UserError(f'--check_json {json_path}: {error.strerror}: name a file in a folder you can write '
                                  'to') from error
    if diagnosis.faults:
        count = '1 fault' if len(diagnosis.faults) == 1 else f'{len(diagnosis.faults)} faults'
        raise utils.UserError(f'{count}: training would go wrong; mend what is listed above')
    print('no fault: ready to convert')


# ------------------------------------------------------------------------------------------- writing a split


def convert_split(split, ids, record_path, num_workers):
    """Writes the usable pairs of a split to a record, in the order of `ids`.

    Returns:
        `Summary`. UserError if the record cannot be written.
    """
    pixels, problems = np.zeros(256, np.int64), []
    results = map_in_order(lambda image_id: convert_pair(split, image_id), ids, num_workers)
    bar = tqdm(results, desc=split.record_name, total=len(ids), unit='image')
    try:
        with bar, open(record_path, 'wb') as record:
            for result in bar:
                if result.problem:
                    problems.append(result.problem)
                else:
                    write_example(record, result.example)
                    pixels += result.pixels
    except OSError as error:
        raise utils.UserError(f'cannot write {split.record_name} ({error.strerror}): free space or name another '
                              '--output_dir') from error
    return Summary(len(ids) - len(problems), pixels, problems)


@contextlib.contextmanager
def partial_records(output_dir, names):
    """Gives temporary paths in the output folder, renamed to `names` when the block ends, removed when it fails."""
    finals = [os.path.join(output_dir, name) for name in names]
    partials = [os.path.join(output_dir, 'partial-' + name) for name in names]
    try:
        yield partials
        for partial, final in zip(partials, finals):
            os.replace(partial, final)
    except KeyboardInterrupt:
        print('interrupted: no record was written', file=sys.stderr)
        raise
    finally:
        for partial in partials:
            if os.path.exists(partial):
                os.remove(partial)


def make_output_folder(output_dir, names):
    """Makes the folder; UserError if that fails or a folder is in a record's place, before any work."""
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f'--output_dir {output_dir}: {error.strerror}: name a folder you can write to') from error
    for name in names:
        path = os.path.join(output_dir, name)
        if os.path.isdir(path):
            raise utils.UserError(f'{path} is a folder: move it away or name another --output_dir')


def check_problems(splits, summaries, skip_bad):
    """Lists what cannot be used on stderr; UserError unless it is to be skipped, or if a split has nothing left."""
    problems = [problem for summary in summaries for problem in summary.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    total = sum(summary.images + len(summary.problems) for summary in summaries)
    if problems and not skip_bad:
        raise utils.UserError(f'{len(problems)} of {total} images cannot be used: mend them or pass --skip_bad')
    for split, summary in zip(splits, summaries):
        if not summary.images:
            raise utils.UserError(f'{split.list_path}: not one of its images can be used: mend them as listed above')
    if problems:
        print(f'{len(problems)} of {total} images left out', file=sys.stderr)


def format_table(titles, summaries):
    """Images, pixels a class and share of all pixels, a pair of columns for each split; str of many lines."""
    lines = [' ' * 12 + ''.join(f'{title:>26}' for title in titles),
             f'{"images":12}' + ''.join(f'{summary.images:>26,}' for summary in summaries)]
    rows = [*enumerate(CLASS_NAMES), (IGNORE_LABEL, 'void')]
    for value, name in rows:
        cells = (f'{summary.pixels[value]:>17,}{summary.pixels[value] / max(summary.pixels.sum(), 1):>9.2%}'
                 for summary in summaries)
        lines.append(f'{name:12}' + ''.join(cells))
    return '\n'.join(lines)


def main(argv=None):
    """Converts both splits; the records take their final names only when both are complete. Or checks them."""
    args = parse_args(argv)
    # Pillow warns of very large pictures and odd EXIF, without the file's name; neither keeps an image out.
    warnings.filterwarnings('ignore', module='PIL')
    splits = find_splits(args)
    if args.check:
        tell(splits, check(splits, args.num_workers), args.check_json)
        return
    ids_by_split = [read_ids(split) for split in splits]
    check_disjoint(splits, ids_by_split)
    names = [split.record_name for split in splits]
    make_output_folder(args.output_dir, names)
    with partial_records(args.output_dir, names) as paths:
        summaries = [convert_split(split, ids, path, args.num_workers)
                     for split, ids, path in zip(splits, ids_by_split, paths)]
        check_problems(splits, summaries, args.skip_bad)
    print(format_table(names, summaries))


if __name__ == '__main__':
    utils.run_program(main)
