"""The flags of train.py. Those that a recipe sets are in recipes.py."""
import utils
from training import recipes


def parse(argv, models):
    """Parses the command line of train.py, or argv, a list of str; see its --help. `models` are the choices of --model.
    `recipe` of the namespace is a recipes.Recipe."""
    parser = utils.ArgumentParser('Trains FCN-8s on the records of convert_fcn_dataset.py. A second call with the same '
                                  '--output_dir continues where the first one ended.')
    add, steps, maybe_steps = parser.add_argument, utils.positive_int, utils.non_negative_int
    add('--checkpoint_path', help='what to start from: a slim checkpoint of VGG16, or a run of a coarser or the same '
                                  '--model; by default vgg_16.ckpt, if this folder has it; none: a random start')
    add('--output_dir', default='results',
        help='run folder: checkpoints in train/, pictures in eval/, best weights in best/')
    add('--dataset_train', default='data/fcn_train.record', help='record to train on')
    add('--dataset_val', default='data/fcn_val.record', help='record of the validation pictures and scores')
    add('--classes', metavar='FILE', help='names of the classes, one a line, for records without a side file')
    add('--model', choices=models, default='fcn_8s', help='with no skip, one or two')
    add('--max_steps', type=steps, default=1500, help='steps in all, resumed ones included')
    add('--fc_channels', type=utils.positive_int, default=4096, help='width of fc6 and fc7; published weights have '
        '4096, of which a divisor takes every k-th filter')
    add('--freeze', choices=recipes.BLOCKS,
        help='leave VGG16 up to and including this block as it is; no gradient is computed for these layers')
    add('--class_weights', choices=('none', 'median_frequency'), default='none',
        help='weights of the classes in the loss; median_frequency makes up for rare ones')
    add('--log_steps', type=steps, default=10, help='steps between log lines')
    add('--save_steps', type=steps, default=100, help='steps between checkpoints')
    add('--val_steps', type=maybe_steps, default=200, help='steps between validation pictures; 0: none')
    add('--eval_steps', type=maybe_steps, default=0,
        help='steps between scores over the complete validation record (train/eval.csv), with a checkpoint each; the '
             'best weights are kept in best/; 0: none')
    add('--patience', type=maybe_steps, default=0, metavar='N',
        help='training ends after N scores of --eval_steps in a row without a better mean IoU; 0: never')
    add('--summary_steps', type=maybe_steps, default=100,
        help='steps between gradient histograms for TensorBoard; 0: none')
    add('--accumulate', type=utils.positive_int, default=1, metavar='N',
        help='batches whose gradients make one update: that of a batch N times as large, in the memory of one batch')
    add('--mixed_precision', action='store_true',
        help='convolutions in float16 on a GPU, with loss scaling; weights stay float32')
    add('--xla', action='store_true', help='compile the training step by XLA; the first steps then take longer')
    add('--deterministic', action='store_true',
        help='only arithmetic that gives the same result each time: on one machine, the same command gives the same '
             'weights bit for bit, interrupted or not; tested on CPUs and on one H200. Without TF32')
    add('--num_gpus', type=utils.positive_int, default=1,
        help='GPUs that share the work of each step, the first of those that are visible; without a GPU, parts of the '
             'CPU')
    add('--dry_run', action='store_true', help='draw the first training crops on the results page, and train nothing')
    add('--seed', type=utils.non_negative_int, default=0, help='of order, crops, dropout and random starts')
    add('--crf_params', metavar='FILE',
        help="the CRF's parameters for the validation pictures, as tools/search_crf.py writes them")
    recipes.add_flags(parser)
    args = recipes.parse(parser, argv)
    if args.recipe.loss == 'sum' and args.mixed_precision:
        parser.error(f'--mixed_precision: gradients of --loss sum (--recipe {args.recipe.name}) are too large for '
                     'float16; leave it out, or give --loss mean and a --learning_rate for it')
    if args.patience and not args.eval_steps:
        parser.error('--patience: counts the scores of --eval_steps; give both')
    return args
