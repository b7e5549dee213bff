"""Segments photos with a trained network, and exports the network as a SavedModel.

    python predict.py --checkpoint_path results/train --images photo.jpg folder/ --output_dir predictions --crf --flip
    python predict.py --checkpoint_path results/train --export exported

For each photo, in --output_dir: NAME.png, the class of every pixel at the photo's own size (palette PNG, the format of
VOC's evaluation server); with --crf NAME_crfed.png, the refined classes; NAME_overlay.jpg, the photo under the colours
of these classes, with a legend.
"""
import os
import sys

if __name__ == '__main__':
    import utils
    utils.import_tensorflow(frozen_weights=True)

import cv2
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

import train
import utils
from datasets.photos import find_photos, read_photo
from inference import averaging, crf, weights
from inference.devices import describe, explain_failures, is_out_of_memory, session_config
from inference.export import export
from inference.legend import draw_overlay
from inference.predictor import load_predictor, predict_image
from utils import UserError


def parse_args(argv=None):
    parser = utils.ArgumentParser('Segments photos: class maps as PNG, overlays with a legend; exports the network.')
    weights.add_flags(parser)
    parser.add_argument('--images', nargs='+', default=[], metavar='PATH',
                        help='photos, and folders of photos with all their subfolders')
    parser.add_argument('--output_dir', default='predictions',
                        help='folder of the results; photos of a folder keep their place among its subfolders')
    parser.add_argument('--max_side', type=utils.positive_int, default=2048,
                        help='photos whose longer side is larger, in pixels, are scaled down for the network')
    averaging.add_flags(parser)
    crf.add_flags(parser)
    parser.add_argument('--export', metavar='DIR', help='write the network as a SavedModel to DIR/VERSION')
    args = parser.parse_args(argv)
    if not args.images and args.export is None:
        parser.error('one of the arguments --images and --export is required')
    crf.check_flags(parser, args.crf, args.crf_params)
    return args


@explain_failures('lower --max_side, or ')
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

    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        if args.export is not None:
            print(f'exported to {export(session, train.fcn, predictor.network, args.export, class_set)}')
        if photos:
            skipped = predict_all(session, predictor, photos, class_set, args)
            problems += skipped
            print(f'photos done: {len(photos) - len(skipped)}, skipped: {len(problems)}; results in {args.output_dir}')
    return 1 if problems else None


def predict_all(session, predictor, photos, class_set, args):
    """Predicts photo by photo and writes the results; returns a line for each photo that was skipped, with the
    reason."""
    problems = []
    for photo in tqdm.tqdm(photos, desc='predicting', unit='photo'):
        try:
            image = read_photo(photo.path)
            maps = predict(session, predictor, image, args.max_side, args.crf_params if args.crf else None,
                           args.scales, args.flip)
        except UserError as error:
            problems.append(str(error))
        except (MemoryError, tf.errors.OpError) as error:
            if not is_out_of_memory(error):
                raise
            problems.append(f'{photo.path}: out of memory; lower --max_side' + (
                ' or --scales' if max(args.scales) > 1 else ''))
        else:
            write_results(os.path.join(args.output_dir, photo.name), image, maps, class_set)
            continue
        tqdm.tqdm.write(f'skipped: {problems[-1]}', file=sys.stderr)
    return problems


def predict(session, predictor, image, max_side, crf_parameters=None, scales=(1.0,), flip=False):
    """Predicts the classes of one photo, uint8 RGB [H, W, 3], at its own size: dict of uint8 [H, W], 'plain', and
    'crfed' with crf.Parameters. Network and CRF see a photo whose longer side is above max_side pixels scaled down to
    it; the probabilities are scaled back bilinearly, the CRF's classes by nearest neighbour. For scales and flip see
    averaging.average_probabilities."""
    height, width, _ = image.shape
    scaled = shrink(image, max_side)
    probabilities = predict_image(session, predictor, scaled, scales, flip)
    maps = {'plain': most_probable(probabilities, height, width)}
    if crf_parameters:
        refined = crf.refine(scaled, probabilities, crf_parameters)
        maps['crfed'] = cv2.resize(refined, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return maps


def shrink(image, max_side):
    """Scales uint8 [H, W, 3] down to max_side pixels on its longer side, and at least 1 on the other."""
    return averaging.scale_image(image, min(1, max_side / max(image.shape[:2])))


def most_probable(probabilities, height, width):
    """The most probable class of each pixel, uint8 [height, width], of probabilities, float32 [h, w, C], that are
    scaled up bilinearly; without scaling the argmax."""
    if probabilities.shape[:2] == (height, width):
        return probabilities.argmax(axis=-1).astype(np.uint8)
    labels, best = np.zeros((height, width), np.uint8), np.full((height, width), -1, np.float32)
    for index in range(probabilities.shape[-1]):  # class by class: all of a large photo do not fit into memory
        scores = cv2.resize(probabilities[:, :, index], (width, height), interpolation=cv2.INTER_LINEAR)
        labels[scores > best] = index
        np.maximum(best, scores, out=best)
    return labels


def write_results(stem, image, maps, class_set):
    """Writes STEM.png, with a CRF STEM_crfed.png, and STEM_overlay.jpg of the refined classes if there are any;
    UserError if one cannot be written."""
    overlay = draw_overlay(image, maps.get('crfed', maps['plain']), class_set)
    try:
        os.makedirs(os.path.dirname(stem), exist_ok=True)
        utils.save_labels(f'{stem}.png', maps['plain'], class_set.palette)
        if 'crfed' in maps:
            utils.save_labels(f'{stem}_crfed.png', maps['crfed'], class_set.palette)
        utils.save_image(f'{stem}_overlay.jpg', overlay)
    except OSError as error:
        raise UserError(f'{error.filename or stem}: cannot be written ({error.strerror}); free some space, or name '
                        'another --output_dir') from None


if __name__ == '__main__':
    utils.run_program(main)
