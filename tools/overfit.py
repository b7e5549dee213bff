"""Trains on a few images until the network knows them by heart, and draws the curve: the first check of a new data set.

    python tools/overfit.py --dataset data/fcn_train.record --checkpoint_path vgg_16.ckpt --output_dir out/overfit

If the mean IoU on the very images that were trained on stays low, then labels, loss or learning rate are wrong, and a
long run would be wasted.
"""
import csv
import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tensorflow.compat.v1 as tf
from matplotlib.figure import Figure

import dataset
import evaluate
import train
import utils


def take_first(record, number, path):
    """Copies the first `number` examples of a record to a new record; UserError if it holds fewer."""
    held = dataset.count_examples(record)
    if held < number:
        raise utils.UserError(f'--num_images {number}: {record} holds only {held}')
    with tf.io.TFRecordWriter(path) as writer:
        for serialized in itertools.islice(tf.io.tf_record_iterator(record), number):
            writer.write(serialized)


def train_and_score(args, record):
    """Trains and scores in turns.

    Returns:
        list of (step, mean IoU on the training images).
    """
    scores = []
    for step in range(args.eval_steps, args.max_steps + 1, args.eval_steps):
        settings = ['--dataset_train', record, '--dataset_val', record, '--output_dir', args.output_dir,
                    '--fc_channels', args.fc_channels, '--crop_size', args.crop_size, '--batch_size', args.num_images,
                    '--learning_rate', args.learning_rate, '--max_steps', step, '--save_steps', args.eval_steps,
                    '--val_steps', args.eval_steps, '--summary_steps', 0]
        if args.checkpoint_path:
            settings += ['--checkpoint_path', args.checkpoint_path]
        train.main([str(setting) for setting in settings])
        checkpoint = train.find_checkpoint(os.path.join(args.output_dir, 'train'))
        scored = evaluate.evaluate(checkpoint, record, with_crf=False)
        scores.append((step, scored.scores['plain'].figures()['mean_iou']))
        print(f'step {step}: mean IoU {scores[-1][1]:.4f} on the {args.num_images} images trained on', flush=True)
    return scores


def draw_curve(log_path, scores, path):
    """Draws loss per pixel (of train.py's log.csv) and mean IoU (list of (step, value)) over the steps into one PNG."""
    with open(log_path, newline='') as file:
        losses = [(int(row['step']), float(row['loss_per_pixel'])) for row in csv.DictReader(file)]
    figure = Figure(figsize=(7, 3.5), layout='constrained')
    loss_axis = figure.subplots()
    loss_axis.plot(*zip(*losses), color='tab:red')
    loss_axis.set(xlabel='step', ylim=(0, None))
    loss_axis.set_ylabel('loss per pixel', color='tab:red')
    score_axis = loss_axis.twinx()
    score_axis.plot(*zip(*scores), color='tab:blue', marker='o')
    score_axis.set(ylim=(0, 1))
    score_axis.set_ylabel('mean IoU', color='tab:blue')
    score_axis.grid(alpha=0.3)
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Trains on the first few images of a record until they are known by heart.')
    parser.add_argument('--dataset', default='data/fcn_train.record', help='record whose first images are taken')
    parser.add_argument('--checkpoint_path', help='slim checkpoint of VGG16 to start from')
    parser.add_argument('--output_dir', default='out/overfit', help='run folder; curve.png goes there too')
    parser.add_argument('--num_images', type=utils.positive_int, default=4, help='images, all of them in every batch')
    parser.add_argument('--max_steps', type=utils.positive_int, default=400, help='steps in all')
    parser.add_argument('--eval_steps', type=utils.positive_int, default=50, help='steps between points of the curve')
    parser.add_argument('--learning_rate', type=utils.non_negative_float, default=1e-4, help="Adam's")
    parser.add_argument('--crop_size', type=utils.positive_int, default=224, help='side of the crops in pixels')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=512, help='width of fc6 and fc7')
    args = parser.parse_args(argv)
    if args.eval_steps > args.max_steps:
        parser.error(f'argument --eval_steps: {args.eval_steps} is more than --max_steps {args.max_steps}')
    return args


def main(argv=None):
    args = parse_args(argv)
    train.quiet_tensorflow()
    os.makedirs(args.output_dir, exist_ok=True)
    if tf.train.latest_checkpoint(os.path.join(args.output_dir, 'train')):
        raise utils.UserError(f'--output_dir {args.output_dir}: holds a run already; remove it or name another folder')
    record = os.path.join(args.output_dir, 'few.record')
    take_first(args.dataset, args.num_images, record)
    scores = train_and_score(args, record)
    curve = os.path.join(args.output_dir, 'curve.png')
    draw_curve(os.path.join(args.output_dir, 'train', 'log.csv'), scores, curve)
    print(f'curve in {curve}')


if __name__ == '__main__':
    utils.run_program(main)
