"""Trains on a few images until the network knows them by heart, and draws the curve: the first check of a new data set.

    python tools/overfit.py --dataset data/fcn_train.record --checkpoint_path vgg_16.ckpt --output_dir out/overfit

If the mean IoU stays low on the images that were trained on, then labels, loss or learning rate are wrong, and a long
run would be wasted.
"""
import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tensorflow.compat.v1 as tf
from matplotlib.figure import Figure

import train
import utils
from datasets import records
from report import page


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Trains on the first few images of a record until they are known by heart.')
    parser.add_argument('--dataset', default='data/fcn_train.record', help='record whose first images are used')
    parser.add_argument('--checkpoint_path', help='slim checkpoint of VGG16 to start from')
    parser.add_argument('--output_dir', default='out/overfit', help='run folder; curve.png is written there too')
    parser.add_argument('--num_images', type=utils.positive_int, default=4, help='images, all of them in every batch')
    parser.add_argument('--max_steps', type=utils.positive_int, default=400, help='steps in all')
    parser.add_argument('--eval_steps', type=utils.positive_int, default=50, help='steps between points of the curve')
    parser.add_argument('--learning_rate', type=utils.non_negative_float, default=1e-4, help="Adam's")
    parser.add_argument('--crop_size', type=utils.positive_int, default=224, help='side of the crops in pixels')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=512, help='width of fc6 and fc7')
    return parser.parse_args(argv)


def main(argv=None):
    """Trains with every image in every batch, and scores these images at some steps."""
    args = parse_args(argv)
    utils.quiet_tensorflow()
    train_dir = os.path.join(args.output_dir, 'train')
    if tf.train.latest_checkpoint(train_dir):
        raise utils.UserError(f'--output_dir {args.output_dir}: holds a run already; remove it or give another folder')
    record, curve = (os.path.join(args.output_dir, name) for name in ('few.record', 'curve.png'))
    take_first(args.dataset, args.num_images, record)

    flags = {'dataset_train': record, 'dataset_val': record, 'output_dir': args.output_dir,
             'fc_channels': args.fc_channels, 'crop_size': args.crop_size, 'batch_size': args.num_images,
             'learning_rate': args.learning_rate, 'max_steps': args.max_steps, 'save_steps': args.eval_steps,
             'val_steps': args.eval_steps, 'eval_steps': args.eval_steps}
    if args.checkpoint_path:
        flags['checkpoint_path'] = args.checkpoint_path
    train.main([f'--{name}={value}' for name, value in flags.items()])

    losses, scores = (page.read_table(os.path.join(train_dir, name)) for name in ('log.csv', 'eval.csv'))
    draw_curve(losses, scores, curve)
    print(f'mean IoU {scores[-1]["mean_iou"]:.4f} on the {args.num_images} images trained on; curve in {curve}')


def take_first(record, number, path):
    """Copies the first `number` examples of a record to a new record; UserError if it holds fewer."""
    held = records.count_examples(record)
    if held < number:
        raise utils.UserError(f'--num_images {number}: {record} holds only {held}')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with records.open_writer(path) as writer:
        for example in itertools.islice(tf.io.tf_record_iterator(record), number):
            writer.write(example)


def draw_curve(losses, scores, path):
    """Draws loss per pixel and mean IoU over the steps, rows of log.csv and eval.csv, as one PNG."""
    figure = Figure(figsize=(7, 3.5), layout='constrained')
    loss_axis = figure.subplots()
    loss_axis.plot([row['step'] for row in losses], [row['loss_per_pixel'] for row in losses], color='tab:red')
    loss_axis.set(xlabel='step', ylim=(0, None))
    loss_axis.set_ylabel('loss per pixel', color='tab:red')
    score_axis = loss_axis.twinx()
    score_axis.plot([row['step'] for row in scores], [row['mean_iou'] for row in scores], color='tab:blue', marker='o')
    score_axis.set(ylim=(0, 1))
    score_axis.set_ylabel('mean IoU', color='tab:blue')
    score_axis.grid(alpha=0.3)
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


if __name__ == '__main__':
    utils.run_program(main)
