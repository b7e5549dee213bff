"""Scores a checkpoint on every image of a record, at true size, without and with the dense CRF.

    python evaluate.py --checkpoint_path results/train --dataset data/fcn_val.record --crf
"""
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

import crf
import dataset
import train
import utils


def evaluate(checkpoint, record, with_crf):
    """Adds up the confusion matrix over a whole record; void pixels (255) are left out.

    Args:
        checkpoint: str, as train.find_checkpoint returns it.
        record: str, path of a TFRecord file.
        with_crf: bool, refine every prediction and count it too.

    Returns:
        dict: 'plain', and 'crf' if asked for, to int64 [C, C]; row: annotated class, column: predicted class.
    """
    num_examples = dataset.count_examples(record)
    confusions = {name: np.zeros([dataset.NUMBER_OF_CLASSES] * 2, np.int64)
                  for name in (('plain', 'crf') if with_crf else ('plain',))}
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        next_example = tf.data.make_one_shot_iterator(dataset.whole_images(record)).get_next()
        for _ in tqdm.trange(num_examples, desc='evaluating', unit='image'):
            example = train.run_input(session, next_example, record)
            image, label = example['image'], example['label']
            probabilities = session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]
            predictions = {'plain': probabilities.argmax(axis=-1)}
            if with_crf:
                predictions['crf'] = crf.refine(image, probabilities)
            for name, prediction in predictions.items():
                confusions[name] += utils.confusion_matrix(label, prediction, dataset.NUMBER_OF_CLASSES)
    return confusions


def print_scores(confusions):
    """Prints the IoU of each class that occurs, then mean IoU and pixel accuracy, one column a confusion matrix."""
    columns = list(confusions)
    ious = {name: utils.iou_per_class(confusions[name]) for name in columns}
    print(f'{"IoU":14}' + ''.join(f'{"with CRF" if name == "crf" else "":>10}' for name in columns))
    for index, class_name in enumerate(dataset.CLASS_NAMES):
        print(f'{class_name:14}' + ''.join(
            f'{"absent" if np.isnan(ious[name][index]) else format(ious[name][index], ".4f"):>10}' for name in columns))
    print(f'{"mean IoU":14}' + ''.join(f'{utils.mean_iou(confusions[name]):10.4f}' for name in columns))
    print(f'{"pixel accuracy":14}' + ''.join(f'{utils.pixel_accuracy(confusions[name]):10.4f}' for name in columns))


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Scores a checkpoint on every image of a record.')
    parser.add_argument('--checkpoint_path', default='results/train', help='checkpoint, or the folder of a run')
    parser.add_argument('--dataset', default='data/fcn_val.record', help='record to score on')
    parser.add_argument('--crf', action='store_true', help='score the predictions refined by the dense CRF as well')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    train.quiet_tensorflow()
    checkpoint = train.find_checkpoint(args.checkpoint_path)
    confusions = evaluate(checkpoint, args.dataset, args.crf)
    print(f'{args.dataset}, {checkpoint}:')
    print_scores(confusions)


if __name__ == '__main__':
    utils.run_program(main)
