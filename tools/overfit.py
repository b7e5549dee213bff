"""Trains on a few images until the network knows them by heart: the first check of a new data set.

    python tools/overfit.py --dataset data/fcn_train.record --checkpoint_path vgg_16.ckpt --output_dir out/overfit

If the mean IoU stays low on the images that were trained on, then labels, loss or learning rate are wrong, and a long
run would be wasted.
"""
import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import tensorflow.compat.v1 as tf

import train
import utils
from datasets import classes, records
from report import page


def parse_args(argv=None):
    parser = utils.ArgumentParser('Trains on the first few images of a record until they are known by heart.')
    parser.add_argument('--dataset', default='data/fcn_train.record', help='record whose first images are used')
    parser.add_argument('--checkpoint_path', help='slim checkpoint of VGG16 to start from')
    parser.add_argument('--output_dir', default='out/overfit', help='run folder; index.html has the curves')
    parser.add_argument('--num_images', type=utils.positive_int, default=4, help='images, all of them in every batch')
    parser.add_argument('--max_steps', type=utils.positive_int, default=400, help='steps in all')
    parser.add_argument('--eval_steps', type=utils.positive_int, default=50, help='steps between scores')
    parser.add_argument('--learning_rate', type=utils.non_negative_float, default=1e-4, help="Adam's")
    parser.add_argument('--crop_size', type=utils.positive_int, default=224, help='side of the crops in pixels')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=512, help='width of fc6 and fc7')
    parser.add_argument('--num_gpus', type=utils.positive_int, default=1, help='GPUs that share the work of each step')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    train_dir, record, names = (os.path.join(args.output_dir, name) for name in ('train', 'few.record', 'classes.txt'))
    held = records.count_examples(args.dataset)
    if held < args.num_images:
        raise utils.UserError(f'--num_images {args.num_images}: {args.dataset} holds only {held}')
    examples = list(itertools.islice(tf.io.tf_record_iterator(args.dataset), args.num_images))
    known = list(tf.io.tf_record_iterator(record)) if os.path.exists(record) else []
    if tf.train.latest_checkpoint(train_dir) and known != examples:
        raise utils.UserError(f'--output_dir {args.output_dir}: holds a run on other images; remove it or give another '
                              'folder')
    os.makedirs(args.output_dir, exist_ok=True)
    utils.save_text(names, classes.as_text(classes.of_record(args.dataset)))
    with records.open_writer(record) as writer:
        for example in examples:
            writer.write(example)

    own = {name: value for name, value in vars(args).items() if name not in ('dataset', 'num_images')}
    flags = {**own, 'dataset_train': record, 'dataset_val': record, 'classes': names, 'batch_size': args.num_images,
             'save_steps': args.eval_steps, 'val_steps': args.eval_steps}
    train.main([f'--{name}={value}' for name, value in flags.items() if value is not None])
    score = page.read_table(os.path.join(train_dir, 'eval.csv'))[-1]['mean_iou']
    print(f'mean IoU {score:.4f} on the {args.num_images} images trained on; curves in {args.output_dir}/index.html')


if __name__ == '__main__':
    utils.run_program(main)
