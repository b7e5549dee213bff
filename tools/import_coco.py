"""Draws the objects of a COCO JSON file as masks in VOC's layout, which convert_fcn_dataset.py reads.

    pip install pycocotools
    python tools/import_coco.py --annotations instances_val2017.json --images val2017 --output_dir coco

Class 0 is the background, and the categories are 1, 2, ... in the order of their ids. pycocotools draws polygons,
run-length encodings and crowds: crowds first, then the objects from large to small, so that the smaller one of two that
overlap is on top. The format: https://cocodataset.org/#format-data.
"""
import contextlib
import glob
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

import utils
from datasets import classes
from utils import UserError

try:
    from pycocotools import mask as run_lengths
    from pycocotools.coco import COCO
except ImportError:
    COCO = None


def parse_args(argv=None):
    parser = utils.ArgumentParser("Draws the objects of a COCO JSON file as masks in VOC's layout.")
    parser.add_argument('--annotations', required=True, metavar='FILE',
                        help='JSON file with images, annotations and categories')
    parser.add_argument('--images', required=True, metavar='DIR',
                        help='folder of the images that the file names')
    parser.add_argument('--output_dir', default='coco',
                        help="folder to write, in VOC's layout; several JSON files may share it")
    parser.add_argument('--split', default='train', metavar='NAME',
                        help='write the list ImageSets/Segmentation/NAME.txt')
    return parser.parse_args(argv)


def read_coco(path):
    """Reads a JSON file as pycocotools' COCO; returns it and what find_classes returns. UserError if that fails."""
    if COCO is None:
        raise UserError('pycocotools is missing: pip install pycocotools')
    try:
        with contextlib.redirect_stdout(None):  # COCO prints its progress
            coco = COCO(path)
        if not (coco.imgs and coco.anns and coco.cats):
            raise ValueError('has no images, no annotations or no categories')
        if not any(annotation.get('segmentation') for annotation in coco.anns.values()):
            raise ValueError('its objects have boxes, but no outlines')
        for entries, key, kind in ((coco.imgs, 'file_name', str), (coco.imgs, 'height', int), (coco.imgs, 'width', int),
                                   (coco.cats, 'name', str)):
            for number, entry in entries.items():
                if not isinstance(entry.get(key), kind):
                    raise ValueError(f'{key} of the entry with id {number} is {entry.get(key)!r}')
        return coco, *find_classes(coco)
    except OSError as error:
        raise UserError(f'--annotations {path}: {error.strerror}') from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f'--annotations {path}: is not a COCO file of objects ({error})') from None


def find_classes(coco):
    """The ClassSet of a COCO's categories, and the label of each category id, dict of int to int. Categories of one
    name are one class; one called background is the background, one called void or ignore is void. ValueError if they
    cannot be classes, UserError if a file of names cannot hold one."""
    names = {number: 'background' if classes.is_background(name) else name
             for number, name in sorted((number, category['name']) for number, category in coco.cats.items())
             if name.lower() not in classes.VOID_NAMES}
    class_set = classes.check_class_set(list(dict.fromkeys(['background', *names.values()])))
    for name, line in zip(class_set.names, classes.as_text(class_set).splitlines()):
        if not re.fullmatch(classes.LIST, line):
            raise UserError(f'the category {name!r} cannot be in a list of names; rename it in the JSON file')
    return class_set, {number: class_set.names.index(names[number]) if number in names else classes.IGNORE_LABEL
                       for number in coco.cats}


def find_images(coco, folder):
    """The images of a COCO: dict of VOC's id to image id and path. UserError: a file is missing or not in the folder,
    or two have the same id. Folders in a file's name become part of VOC's id."""
    found = {}
    for number, image in coco.imgs.items():
        name = os.path.normpath(image['file_name'])
        path, image_id = os.path.join(folder, name), os.path.splitext(name)[0].replace(os.sep, '_')
        if os.path.isabs(name) or name.startswith('..') or not os.path.isfile(path):
            raise UserError(f'{path}: is not a file in the folder; name the folder of the images by --images')
        if image_id in found:
            raise UserError(f'{path}: {found[image_id][1]} would have the same name, {image_id}; rename one of them')
        found[image_id] = number, path
    return found


def check_lists(folder, found):
    """Raises UserError if an image of `found`, dict by VOC's id, is in a list of the folder already."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.txt'))):
        if both := found.keys() & set(utils.read_lines(path, 'remove it')):
            raise UserError(f'{path}: lists an image {min(both)} already; give another --output_dir')


def draw_mask(coco, number, class_of_category):
    """The mask of image `number` of a COCO, uint8 [H, W]. UserError if the segmentation of an object cannot be drawn.
    An object without a segmentation, which is only a box, is left out."""
    image, drawn = coco.imgs[number], []
    for annotation in coco.imgToAnns[number]:
        try:
            outlines = annotation.get('segmentation')
            if isinstance(outlines, list):  # four numbers would be a box to pycocotools
                outlines = [outline for outline in outlines if len(outline) >= 6]
                if not all(np.abs(outline).max() < 1e5 for outline in outlines):  # pycocotools would fill the memory
                    raise ValueError('an outline far outside the image')
            if outlines:
                encoded = coco.annToRLE({**annotation, 'segmentation': outlines})
                if encoded['size'] != [image['height'], image['width']]:
                    raise ValueError(f'its mask has the height and width {encoded["size"]}')
                run_lengths.decode(encoded)  # fails here if it is damaged
                drawn.append((not annotation.get('iscrowd'), -int(run_lengths.area(encoded)), len(drawn), encoded,
                              class_of_category[annotation['category_id']]))
        except Exception as error:  # pycocotools raises nearly anything
            raise UserError(f'annotation {annotation.get("id")} of {image["file_name"]}: cannot be drawn ({error!r}); '
                            'mend it or take it out') from None
    mask = np.zeros((image['height'], image['width']), np.uint8)
    for *_, encoded, label in sorted(drawn, key=lambda each: each[:3]):
        mask[run_lengths.decode(encoded) > 0] = label
    return mask


def copy_image(path, copy):
    """Copies a file; as a hard link, which needs no space, where the file system can."""
    if os.path.exists(copy):  # of an interrupted run
        os.remove(copy)
    try:
        os.link(os.path.realpath(path), copy)
    except OSError:
        shutil.copyfile(path, copy)


def main(argv=None):
    """Writes the list last, so that an interrupted run leaves none."""
    args = parse_args(argv)
    masks, images, lists = (os.path.join(args.output_dir, *name.split('/'))
                            for name in ('SegmentationClass', 'JPEGImages', 'ImageSets/Segmentation'))
    list_path, names_path = os.path.join(lists, f'{args.split}.txt'), os.path.join(args.output_dir, 'class_names.txt')
    if os.path.exists(list_path):
        raise UserError(f'{list_path} exists already: give another --split or --output_dir')
    coco, class_set, class_of_category = read_coco(args.annotations)
    if os.path.exists(names_path):
        classes.check_same(class_set, args.annotations, classes.read_classes(names_path), names_path)
    found = find_images(coco, args.images)
    check_lists(lists, found)
    for folder in (masks, images, lists):
        os.makedirs(folder, exist_ok=True)
    for image_id, (number, path) in tqdm(found.items(), desc='drawing masks', unit='image'):
        utils.save_labels(os.path.join(masks, f'{image_id}.png'), draw_mask(coco, number, class_of_category),
                          class_set.palette)
        copy_image(path, os.path.join(images, image_id + os.path.splitext(path)[1]))
    utils.save_text(names_path, classes.as_text(class_set))
    utils.save_text(list_path, ''.join(f'{image_id}\n' for image_id in found))
    divided = '' if os.path.exists(os.path.join(lists, 'val.txt')) else ' --val_fraction 0.2'
    print(f'{len(found):,} images and masks of {len(class_set.names)} classes in {args.output_dir}; next: '
          f'python convert_fcn_dataset.py --data_dir {args.output_dir} --classes {names_path}{divided}')


if __name__ == '__main__':
    utils.run_program(main)
