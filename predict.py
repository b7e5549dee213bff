"""Segments any photos with a trained network, and exports the network as a SavedModel.

    python predict.py --checkpoint_path results/train --images photo.jpg folder/ --output_dir predictions --crf --flip
    python predict.py --checkpoint_path results/train --export exported

For each photo, in --output_dir: NAME.png, the class of every pixel at the photo's own size (palette PNG, the format of
VOC's evaluation server); NAME_overlay.jpg, the photo under the classes' colours, with a legend; and with --crf
NAME_crfed.png, the refined classes, which are then the overlay's too.
"""
import collections
import os
import shutil
import sys
import warnings

import cv2
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

import train
import utils
from datasets import classes, records
from inference import averaging, crf
from utils import UserError

# ------------------------------------------------------------------------------------------- finding photos

# What counts as a photo in a folder. HEIC cannot be read, but a phone's photos shall be named, not passed over.
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm',
                 '.pbm', '.avif', '.jp2', '.heic', '.heif')

Photo = collections.namedtuple('Photo', 'path name')


def find_photos(paths, output_dir):
    """The photos that --images names: files as they are, folders with all that is below them.

    Args:
        paths: list of str, files and folders.
        output_dir: str, where the results go; it is not searched.

    Returns:
        photos: list of Photo: `path`, and `name`, its results' path in output_dir without ending. Names differ.
        problems: list of str, a line for each path that is missing or a folder without image files.

    Raises:
        UserError: there is no photo at all, or a result would lie on a photo.
    """
    folders = [path for path in paths if os.path.isdir(path)]
    found, problems = {}, []  # found: path to wanted name, each path once
    for path in paths:
        if path in folders:
            files = list_folder(path, output_dir)
            root = os.path.dirname(os.path.abspath(path)) if len(folders) > 1 else path
            found.update({file: os.path.relpath(file, root) for file in files if file not in found})
            problems += [] if files else [f'{path}: no image files in this folder']
        elif os.path.exists(path):
            found.setdefault(os.path.normpath(path), os.path.basename(path))
        else:
            problems.append(f'{path}: no such file or folder')
    if not found:
        raise UserError('--images: no photo found (' + '; '.join(problems) + ')')
    photos = name_results(found)
    check_nothing_is_overwritten(photos, output_dir)
    return photos, problems


def list_folder(folder, output_dir):
    """Paths of the image files below a folder, sorted; what is hidden (.name) or in output_dir is left out.

    Raises:
        UserError: the folder is output_dir: a second run would take the first one's results for photos.
    """
    if os.path.realpath(folder) == os.path.realpath(output_dir):
        raise UserError(f'--output_dir {output_dir}: holds the photos; choose another folder for the results')
    files = []
    for here, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.')
                               and os.path.realpath(os.path.join(here, name)) != os.path.realpath(output_dir))
        files += [os.path.normpath(os.path.join(here, name)) for name in sorted(names)
                  if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith('.')]
    return files


def name_results(wanted):
    """Gives every photo a name of its own: where two want the same one, the later gets -2, -3, ...

    Args:
        wanted: dict of str, path to wanted name with ending (a.jpg and a.png both want 'a').

    Returns:
        list of Photo, in the dict's order.
    """
    photos, taken = [], set()
    for path, file_name in wanted.items():
        stem = name = os.path.splitext(file_name)[0]
        number = 1
        # In lower case, for file systems that compare so; and NAME_crfed is taken too, should there be such a photo.
        while not taken.isdisjoint(results := {name.lower(), f'{name}_crfed'.lower()}):
            number += 1
            name = f'{stem}-{number}'
        if number > 1:
            print(f'{path}: its results are called {name}, for {stem} is taken', file=sys.stderr)
        taken |= results
        photos.append(Photo(path, name))
    return photos


def check_nothing_is_overwritten(photos, output_dir):
    """Raises UserError if a result would be written over one of the photos."""
    paths = {os.path.realpath(photo.path) for photo in photos}
    for photo in photos:
        for ending in ('.png', '_crfed.png', '_overlay.jpg'):
            result = os.path.join(output_dir, photo.name + ending)
            if os.path.realpath(result) in paths:
                raise UserError(f'--output_dir {output_dir}: {result} is one of the photos; choose another folder')


# ------------------------------------------------------------------------------------------- reading photos

FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000')  # no EPS: it runs programs


def read_photo(path):
    """Reads an image file as a viewer shows it: upright, in colour, on white paper; of animations the first frame.

    A JPEG gives the same pixels as the decoder of input_pipeline.py.

    Args:
        path: str.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        UserError: it is no image, damaged, or too large; the message is one line with path and reason.
    """
    try:
        with warnings.catch_warnings(), utils.open_file(path) as file:
            warnings.simplefilter('ignore')  # of half-large pictures and odd metadata: neither harms
            with Image.open(file, formats=FORMATS) as picture:
                check_scans(path, picture)
                ImageOps.exif_transpose(picture, in_place=True)  # each copy of the largest takes 0.7 GB
                return to_rgb(picture)
    except UnidentifiedImageError:
        reason = 'no image, or of a format that cannot be read; convert it to JPEG or PNG'
    except Image.DecompressionBombError:
        reason = f'more than {2 * Image.MAX_IMAGE_PIXELS // 10 ** 6} million pixels; scale it down'
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{path}: {reason}')


def check_scans(path, picture):
    """Raises ValueError for a JPEG of endless scans, which would take hours; `picture` is the opened file."""
    if picture.info.get('progressive'):
        with open(path, 'rb') as file:
            if records.has_endless_scans(file.read(records.MAX_FILE_BYTES)):
                raise ValueError(f'has more than {records.MAX_SCANS} scans; save it anew')


def to_rgb(picture):
    """Any Pillow image to uint8 RGB [H, W, 3]; what is transparent becomes white."""
    if picture.mode.startswith(('I', 'F')):
        grey = deep_grey_to_8_bits(np.asarray(picture), full_scale=65535 if picture.mode.startswith('I;16') else None)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return np.array(picture if picture.mode == 'RGB' else picture.convert('RGB'))


def deep_grey_to_8_bits(values, full_scale):
    """Grey values of any kind [H, W] to uint8; where full scale (white) is not known, black to white is their range."""
    lowest, highest = (0, full_scale) if full_scale else (values.min(), values.max())
    share = (values.astype(np.float64) - lowest) / max(float(highest) - float(lowest), 1e-30)
    return np.round(share * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------- predicting


def predict(session, predictor, image, args):
    """Classes of one photo, at its own size.

    A photo beyond max_side is scaled down for network and CRF. The probabilities are then scaled back bilinearly, the
    CRF's label map by nearest neighbour.

    Args:
        session: with the network's weights. predictor: train.Predictor.
        image: uint8 RGB [H, W, 3].
        args: of parse_args, for max_side, scales (of the photo within max_side), flip, crf and crf_params.

    Returns:
        dict of uint8 [H, W]: 'plain', and 'crfed' if asked for.
    """
    height, width, _ = image.shape
    seen = shrink(image, args.max_side)
    probabilities = train.predict_image(session, predictor, seen, args.scales, args.flip)
    maps = {'plain': most_probable(probabilities, height, width)}
    if args.crf:
        refined = crf.refine(seen, probabilities, args.crf_params)
        maps['crfed'] = cv2.resize(refined, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return maps


def shrink(image, max_side):
    """Scales uint8 [H, W, 3] down to max_side pixels on its longer side, and at least 1 on the other."""
    return averaging.scale_image(image, min(1, max_side / max(image.shape[:2])))


def most_probable(probabilities, height, width):
    """The class of highest probability at each pixel of a larger grid, interpolated bilinearly.

    Args:
        probabilities: float32 [h, w, C].
        height, width: ints, H and W.

    Returns:
        uint8 [H, W]; for H, W = h, w the plain argmax.
    """
    if probabilities.shape[:2] == (height, width):
        return probabilities.argmax(axis=-1).astype(np.uint8)
    labels, best = np.zeros((height, width), np.uint8), np.full((height, width), -1, np.float32)
    for index in range(probabilities.shape[-1]):  # class by class, for all of a large photo at once fill the memory
        scores = cv2.resize(probabilities[:, :, index], (width, height), interpolation=cv2.INTER_LINEAR)
        labels[scores > best] = index
        np.maximum(best, scores, out=best)
    return labels


# ------------------------------------------------------------------------------------------- pictures


def draw_overlay(image, labels, class_set):
    """The photo under its classes' colours, with a legend: beneath it, or beside it where the photo is tall.

    Args:
        image: uint8 RGB [H, W, 3].
        labels: uint8 [H, W].
        class_set: classes.ClassSet.

    Returns:
        uint8 RGB, at least as high and wide as the photo (scaled down to 60000, should it be larger than JPEG allows).
    """
    side = 60000
    if max(labels.shape) > side:
        image = shrink(image, side)
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = labels.shape
    beside = height > 2 * width
    text_size = max(16, round((height * width) ** 0.5 / 40))
    legend = draw_legend(np.unique(labels), class_set, 0 if beside else width, text_size)
    parts = [utils.overlay(image, labels, class_set.palette, class_set.has_background), legend]
    extent = max(part.shape[0 if beside else 1] for part in parts)
    return np.concatenate([fill_up(part, extent, axis=0 if beside else 1) for part in parts], axis=1 if beside else 0)


def fill_up(pixels, extent, axis):
    """Adds white to the end of an axis of uint8 [H, W, 3] until it is `extent` long."""
    margin = [(0, 0)] * 3
    margin[axis] = (0, extent - pixels.shape[axis])
    return np.pad(pixels, margin, constant_values=255)


def draw_legend(labels, class_set, width, text_size):
    """A swatch and a name for each class but a background, whose pixels an overlay leaves alone.

    Args:
        labels: ints, the classes. class_set: classes.ClassSet. text_size: int, height of the letters in pixels.
        width: int, pixels to fill with entries before a new row starts; an entry that is wider has its own.

    Returns:
        uint8 RGB [H, W, 3], W >= width.
    """
    font, gap = ImageFont.load_default(text_size), text_size // 2
    entries = [(class_set.names[index], class_set.colours[index]) for index in labels
               if index or not class_set.has_background]
    entries = entries or [('background only', (255, 255, 255))]
    extents = [text_size + gap + int(font.getlength(name)) + 2 * gap for name, _ in entries]
    width = max(width, gap + max(extents))
    corners = place_in_rows(extents, width, start=gap, row_height=text_size + gap)

    legend = Image.new('RGB', (width, corners[-1][1] + text_size + gap), 'white')
    draw = ImageDraw.Draw(legend)
    for (x, y), (name, colour) in zip(corners, entries):
        draw.rectangle((x, y, x + text_size, y + text_size), fill=colour, outline='black')
        draw.text((x + text_size + gap, y + text_size // 2), name, 'black', font, anchor='lm')
    return np.array(legend)


def place_in_rows(extents, width, start, row_height):
    """Top left corners (x, y) of things of these widths, from left to right and row by row; ints, pixels."""
    corners, x, y = [], start, start
    for extent in extents:
        if x > start and x + extent > width:
            x, y = start, y + row_height
        corners.append((x, y))
        x += extent
    return corners


def write_results(stem, image, maps, class_set):
    """Writes STEM.png, STEM_crfed.png if there is a refined map, and STEM_overlay.jpg of the better of the two.

    Raises:
        UserError: one cannot be written.
    """
    overlay, palette = draw_overlay(image, maps.get('crfed', maps['plain']), class_set), class_set.palette
    try:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        utils.save_labels(f'{stem}.png', maps['plain'], palette)
        if 'crfed' in maps:
            utils.save_labels(f'{stem}_crfed.png', maps['crfed'], palette)
        utils.save_image(f'{stem}_overlay.jpg', overlay)
    except OSError as error:
        raise UserError(f'{error.filename or stem}: cannot be written ({error.strerror}); free some space, or name '
                        'another --output_dir') from None


# ------------------------------------------------------------------------------------------- export


def build_signature(network):
    """Builds the network of the default graph's variables again, for batches.

    A batch goes through it image by image: the sums inside a convolution are taken in an order that depends on the
    batch, and where two classes are nearly even, their last bits would make the classes other than predict's.

    Returns:
        signature of `image`, uint8 [B, H, W, 3] RGB of any B, H and W, to `classes`, uint8 [B, H, W], and
        `probabilities`, float32 [B, H, W, C].
    """
    def predict_one(image):
        return tf.nn.softmax(train.fcn(image[tf.newaxis], network))[0]

    images = tf.placeholder(tf.uint8, [None, None, None, 3], name='images')
    probabilities = tf.map_fn(predict_one, images, fn_output_signature=tf.float32, parallel_iterations=1)
    labels = tf.cast(tf.argmax(probabilities, axis=-1), tf.uint8)
    return tf.saved_model.predict_signature_def({'image': images}, {'classes': labels, 'probabilities': probabilities})


def export(session, network, folder, class_set):
    """Writes the network, weights only, as a SavedModel into a new version folder, TensorFlow Serving's layout.

    See build_signature for what it takes and returns. The names lie in assets.extra/classes.txt, in the format of
    --classes; a server passes over that file. As one more output they would have another first axis than the batch's,
    which TensorFlow Serving's REST interface refuses in its row format.

    Args:
        session: with the network's weights, its graph the default one. network: train.Network.
        folder: str; the SavedModel goes to folder/1, or one above the highest version there.
        class_set: classes.ClassSet.

    Returns:
        str, the version's folder.

    Raises:
        UserError: it cannot be written.
    """
    signature = build_signature(network)
    os.makedirs(folder, exist_ok=True)
    versions = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    version = os.path.join(folder, str(max(versions, default=0) + 1))
    partial = os.path.join(folder, f'partial-{os.getpid()}')  # a server passes over names that are no number
    try:
        builder = tf.saved_model.Builder(partial)
        builder.add_meta_graph_and_variables(session, [tf.saved_model.tag_constants.SERVING],
                                             {'serving_default': signature}, strip_default_attrs=True)
        builder.save()
        os.makedirs(os.path.join(partial, 'assets.extra'))
        utils.save_text(os.path.join(partial, 'assets.extra', 'classes.txt'), classes.as_text(class_set))
        os.rename(partial, version)
    except tf.errors.OpError as error:
        raise UserError(f'--export {folder}: cannot be written ({train.find_reason(error)})') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return version


# ------------------------------------------------------------------------------------------- the program


def predict_all(session, predictor, photos, class_set, args):
    """Predicts photo by photo and writes the results in a ClassSet's colours. See parse_args for args.

    Returns:
        list of str, a line for each photo that was skipped, with the reason.
    """
    problems = []
    for photo in tqdm.tqdm(photos, desc='predicting', unit='photo'):
        try:
            image = read_photo(photo.path)
            maps = predict(session, predictor, image, args)
        except UserError as error:
            problems.append(str(error))
        except (MemoryError, tf.errors.ResourceExhaustedError):
            problems.append(f'{photo.path}: out of memory; lower --max_side' + (
                ' or --scales' if max(args.scales) > 1 else ''))
        else:
            write_results(os.path.join(args.output_dir, photo.name), image, maps, class_set)
            continue
        tqdm.tqdm.write(f'skipped: {problems[-1]}', file=sys.stderr)
    return problems


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Segments photos: class maps as PNG, overlays with a legend; exports the network.')
    parser.add_argument('--checkpoint_path', default='results/train', help='checkpoint, or the folder of a run')
    parser.add_argument('--images', nargs='+', default=[], metavar='PATH',
                        help='photos, and folders of photos with all their subfolders')
    parser.add_argument('--output_dir', default='predictions',
                        help='folder of the results; photos of a folder keep their place among its subfolders')
    parser.add_argument('--classes', metavar='FILE', help="file of the classes' names, one a line, for a checkpoint "
                                                          'away from its run; else its run tells them')
    parser.add_argument('--crf', action='store_true', help='refine the classes by the dense CRF as well')
    crf.add_flag(parser)
    averaging.add_flags(parser)
    parser.add_argument('--max_side', type=utils.positive_int, default=2048,
                        help='a photo whose longer side is beyond this many pixels is scaled down for the network')
    parser.add_argument('--export', metavar='DIR', help='write the network as a SavedModel to DIR/VERSION')
    args = parser.parse_args(argv)
    if not args.images and args.export is None:
        parser.error('one of the arguments --images and --export is required')
    crf.check_flag(parser, args)
    return args


def main(argv=None):
    """Returns the exit code: 1 if a photo was skipped."""
    args = parse_args(argv)
    train.quiet_tensorflow()
    checkpoint = train.find_checkpoint(args.checkpoint_path)
    class_set = train.find_classes(checkpoint, args.classes)
    photos, problems = find_photos(args.images, args.output_dir) if args.images else ([], [])
    for problem in problems:
        print(f'skipped: {problem}', file=sys.stderr)

    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        if args.export is not None:
            print(f'exported to {export(session, predictor.network, args.export, class_set)}')
        if photos:
            skipped = predict_all(session, predictor, photos, class_set, args)
            problems += skipped
            print(f'photos done: {len(photos) - len(skipped)}, skipped: {len(problems)}; results in {args.output_dir}')
    return 1 if problems else None


if __name__ == '__main__':
    utils.run_program(main)
