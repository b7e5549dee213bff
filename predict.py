"""Segments photos with a trained network, and exports the network as a SavedModel.

    python predict.py --checkpoint_path results/train --images photo.jpg folder/ --output_dir predictions --crf --flip
    python predict.py --checkpoint_path results/train --export exported

For each photo, in --output_dir: NAME.png, the class of every pixel at the photo's own size (palette PNG, the format of
VOC's evaluation server); with --crf NAME_crfed.png, the refined classes; NAME_overlay.jpg, the photo under the colours
of these classes, with a legend; NAME_confidence.png and NAME_probabilities.npz where they are asked for.

In Python:

    from predict import Segmenter
    classes = Segmenter('results/best')(image)
"""
import os
import sys

if __name__ == '__main__':
    import utils
    utils.import_tensorflow(frozen_weights=True)

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
from PIL import Image

import train
import utils
from datasets.photos import find_photos, read_photo
from inference import averaging, crf, weights
from inference.devices import describe, explain_failures, is_out_of_memory, session_config
from inference.export import export
from inference.legend import draw_overlay
from inference.predictor import load_predictor, predict_image, predict_strips
from utils import UserError


def parse_args(argv=None):
    parser = utils.ArgumentParser('Segments photos: class maps as PNG, overlays with a legend; exports the network.')
    weights.add_flags(parser)
    parser.add_argument('--images', nargs='+', default=[], metavar='PATH',
                        help='photos, and folders of photos with all their subfolders')
    parser.add_argument('--output_dir', default='predictions',
                        help='folder of the results; photos of a folder keep their place among its subfolders')
    parser.add_argument('--max_side', type=utils.positive_int, metavar='PIXELS',
                        help='scale photos whose longer side is larger down to this, such as the size of the training '
                             'photos, for the network')
    averaging.add_flags(parser)
    crf.add_flags(parser)
    parser.add_argument('--save_confidence', action='store_true',
                        help="write the probability of each pixel's class as a grey PNG, 255 for 1")
    parser.add_argument('--save_probabilities', action='store_true',
                        help='write the probabilities of all classes as a float16 .npz')
    parser.add_argument('--export', metavar='DIR', help='write the network as a SavedModel to DIR/VERSION')
    args = parser.parse_args(argv)
    if not args.images and args.export is None:
        parser.error('one of the arguments --images and --export is required')
    averaging.check_flags(parser, args.tile, args.overlap)
    crf.check_flags(parser, args.crf, args.crf_params)
    return args


class Segmenter:
    """A trained network for photos, in a TensorFlow graph and session of its own: several fit into one process, and
    threads may share one. close() or `with` frees its memory.

    checkpoint_path: of a checkpoint or the folder of a run. classes_file: see --classes. The others are fields of
    averaging.Passes, such as flip=True. Raises UserError if the checkpoint is missing or damaged, ValueError if the
    windows would not advance.

    Photos are uint8 RGB arrays [H, W, 3], or paths.
    """

    def __init__(self, checkpoint_path, classes_file=None, **passes):
        utils.quiet_tensorflow()
        self.passes = averaging.Passes(**passes)
        averaging.check_tile(self.passes.tile, self.passes.overlap)
        self.checkpoint = weights.find_checkpoint(checkpoint_path)
        self.class_set = weights.find_classes(self.checkpoint, classes_file)
        with tf.Graph().as_default():
            self.session = tf.Session(config=session_config())
            self.predictor = load_predictor(self.session, self.checkpoint, train.fcn,
                                            train.read_network(self.checkpoint))

    def __call__(self, image):
        """The most probable class of each pixel, uint8 [H, W]."""
        image = as_photo(image)
        return summarise(self.strips(image), image.shape[:2])['plain']

    def probabilities(self, image):
        """The softmax, float32 [H, W, C]."""
        return predict_image(self.session, self.predictor, as_photo(image), self.passes)

    def strips(self, image):
        """Yields the softmax in parts, from top to bottom: (first row, float32 [h, W, C])."""
        return predict_strips(self.session, self.predictor, as_photo(image), self.passes)

    def close(self):
        self.session.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def as_photo(image):
    """uint8 RGB [H, W, 3] of an array or a path; ValueError for an array of another kind."""
    if isinstance(image, (str, os.PathLike)):
        return read_photo(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'the photo is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3] in RGB')
    return image


@explain_failures('lower --tile or --max_side, or ')
def main(argv=None):
    """Returns the exit code: 1 if a photo was skipped."""
    args = parse_args(argv)
    utils.quiet_tensorflow()
    print(describe())
    checkpoint = weights.find_checkpoint(args.checkpoint_path)
    class_set = weights.find_classes(checkpoint, args.classes)
    print(weights.describe(checkpoint, class_set, args.classes), flush=True)
    photos, problems = find_photos(args.images, args.output_dir) if args.images else ([], [])
    for problem in problems:
        print(f'skipped: {problem}', file=sys.stderr)
    if photos:
        utils.make_folder(args.output_dir)

    passes = averaging.Passes(args.scales, args.flip, args.tile, args.overlap)
    with Segmenter(checkpoint, args.classes, **passes._asdict()) as segmenter:
        if args.export is not None:
            with segmenter.session.graph.as_default():
                folder = export(segmenter.session, train.fcn, segmenter.predictor.network, args.export, class_set)
            print(f'exported to {folder}')
        if photos:
            skipped = predict_all(segmenter, photos, args)
            problems += skipped
            print(f'photos done: {len(photos) - len(skipped)}, skipped: {len(problems)}; results in {args.output_dir}')
    return 1 if problems else None


def predict_all(segmenter, photos, args):
    """Predicts photo by photo and writes the results; returns a line for each photo that was skipped, with the
    reason."""
    problems = []
    for photo in tqdm.tqdm(photos, desc='predicting', unit='photo'):
        try:
            image = read_photo(photo.path)
            maps = predict(segmenter, image, args.max_side, args.crf_params if args.crf else None,
                           args.save_confidence, args.save_probabilities)
        except UserError as error:
            problems.append(str(error))
        except (MemoryError, tf.errors.OpError) as error:
            if not is_out_of_memory(error):
                raise
            problems.append(f'{photo.path}: out of memory; lower --tile or --max_side' + (
                ' or --scales' if max(args.scales) > 1 else ''))
        else:
            write_results(os.path.join(args.output_dir, photo.name), image, maps, segmenter.class_set)
            continue
        tqdm.tqdm.write(f'skipped: {problems[-1]}', file=sys.stderr)
    return problems


def predict(segmenter, image, max_side=None, crf_parameters=None, with_confidence=False, with_probabilities=False):
    """Predicts one photo, uint8 RGB [H, W, 3], at its own size: the dict of summarise, and 'crfed', uint8 [H, W], with
    crf.Parameters. Network and CRF see a photo whose longer side is above max_side pixels scaled down to it;
    probabilities are scaled back bilinearly, the CRF's classes by nearest neighbour."""
    size, seen = image.shape[:2], averaging.shrink(image, max_side) if max_side else image
    strips = segmenter.strips(seen)
    if crf_parameters or seen is not image:
        probabilities = averaging.join_strips(strips, seen.shape[:2])
        strips = averaging.enlarge(probabilities, size)
    maps = summarise(strips, size, with_confidence, with_probabilities)
    if crf_parameters:
        maps['crfed'] = averaging.resize_labels(crf.refine(seen, probabilities, crf_parameters), size)
    return maps


def summarise(strips, size, with_confidence=False, with_probabilities=False):
    """What is kept of strips, as Segmenter yields them, of a photo of size (H, W): dict of 'plain', the most probable
    class of each pixel, uint8 [H, W]; 'confidence', its probability, uint8 [H, W] with 255 for 1; 'probabilities',
    float16 [H, W, C]."""
    maps = {name: np.empty(size, np.uint8) for name in (['plain', 'confidence'] if with_confidence else ['plain'])}
    for top, strip in strips:
        rows = slice(top, top + len(strip))
        maps['plain'][rows] = strip.argmax(axis=-1)
        if with_confidence:
            maps['confidence'][rows] = np.round(strip.max(axis=-1) * 255)
        if with_probabilities:
            if not top:
                maps['probabilities'] = np.empty((*size, strip.shape[-1]), np.float16)
            maps['probabilities'][rows] = strip
    return maps


def write_results(stem, image, maps, class_set):
    """Writes the maps of predict(), and STEM_overlay.jpg of the refined classes if there are any; UserError if one
    cannot be written."""
    overlay = draw_overlay(image, maps.get('crfed', maps['plain']), class_set)
    try:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        utils.save_labels(f'{stem}.png', maps['plain'], class_set.palette)
        if 'crfed' in maps:
            utils.save_labels(f'{stem}_crfed.png', maps['crfed'], class_set.palette)
        if 'confidence' in maps:
            utils.save_picture(f'{stem}_confidence.png', Image.fromarray(maps['confidence']))
        if 'probabilities' in maps:
            with utils.whole_file(f'{stem}_probabilities.npz') as partial, open(partial, 'wb') as file:
                np.savez_compressed(file, probabilities=maps['probabilities'], classes=class_set.names)
        utils.save_image(f'{stem}_overlay.jpg', overlay)
    except OSError as error:
        raise UserError(f'{error.filename or stem}: cannot be written ({error.strerror}); free some space, or name '
                        'another --output_dir') from None


if __name__ == '__main__':
    utils.run_program(main)
