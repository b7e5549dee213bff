"""The rows of the table: which contenders each one compares, and the lines that come of it.

A row is a function of inputs.Inputs that returns a list of page.Line; its docstring, which the page shows, tells how it
is measured.
"""
import importlib.util
from typing import NamedTuple

from benchmarks import measure
from benchmarks.inputs import as_arguments
from benchmarks.measure import Contender, peaks, rates
from benchmarks.page import Line

TORCH, FUSED = 'PyTorch eager', 'PyTorch eager, Adam(fused=True)'
EARLIER = 'earlier suite'
READ_WEIGHTS = """
import sys
import tensorflow.compat.v1 as tf
checkpoint = tf.train.load_checkpoint(sys.argv[1])
print(sum(checkpoint.get_tensor(name).nbytes for name in checkpoint.get_variable_to_shape_map()), 'bytes read')
"""


class Plan(NamedTuple):
    """How much the rows do; the defaults are those of `make bench`."""
    rounds: int | None = None  # of every row; None: each row's own number
    fc_channels: int = 4096
    crop_size: int = 224
    steps: int = 2  # in a round of train_4
    window: int = 10  # steps in a round of train_1, because the earlier suite logs so often
    torch_steps: int = 3  # in a round of train_1, of PyTorch
    reading_batches: int = 60  # in a round of reading
    image_size: tuple = (375, 500)  # height and width in predict
    predicted: int = 4  # images in a round of predict
    maps: int = 6  # images in crf and crf_pool
    crf_images: int = 3  # in a round of crf
    pool_images: int = 24  # in a round of crf_pool
    map_steps: int = 150  # of the network that makes the maps
    map_channels: int = 512
    map_crop: int = 128
    growth: tuple = ((1, 128), (2, 128), (4, 128), (8, 128), (16, 128), (1, 192), (1, 256), (1, 384))  # batch, crop
    workers: tuple = (1, 2, 4)  # --num_workers of the converter


def against(opponent, found, measured, figures, target=None):
    """The Line that compares our Rounds with an opponent's.

    Args:
        opponent: str. found: dict of name to list of Round; without the opponent where it is not installed.
        measured, target: see Line. figures: function of list of Round to list of float.
    """
    theirs = figures(found[opponent]) if opponent in found else 'not installed'
    return Line(measured, figures(found['ours']), opponent, theirs, target)


def pytorch(name, function, **settings):
    """A list of one PyTorch contender; it is empty where PyTorch is not installed."""
    return [Contender(name, f'pytorch_fcn.{function}', settings)] if importlib.util.find_spec('torch') else []


def program(name, arguments, items=1, files=()):
    """The Contender that runs `python ARGUMENTS`; see contend.run_program."""
    return Contender(name, 'contend.run_program', {'arguments': arguments, 'items': items, 'files': files})


# ------------------------------------------------------------------------------------------- conversion


def converter(inputs, name, **flags):
    """The Contender convert_fcn_dataset.py."""
    arguments = as_arguments({**inputs.convert_flags('converted'), **flags})
    records = [inputs.path('converted', f'fcn_{role}.record') for role in ('train', 'val')]
    return program(name, ['convert_fcn_dataset.py', *arguments], len(inputs.data.photos()), records)


def convert(inputs):
    """Complete processes, from their start to their end, over all images of both splits; all files are in the page
    cache. The opponent works as the earlier suite did: one process, image and mask by cv2.imread, colours through a
    table of 256^3, labels as raw bytes."""
    ours, records, arguments = converter(inputs, 'ours'), [], ['-m', 'benchmarks.earlier_convert']
    for list_path, label_dir, _ in inputs.data.splits():
        records.append(inputs.path(f'earlier_{len(records)}.record'))
        arguments += [f'{inputs.data.folder}/JPEGImages', label_dir, list_path, records[-1]]
    found = inputs.take_turns([ours, program(EARLIER, arguments, ours.settings['items'], records)], rounds=3)
    return [against(EARLIER, found, 'images/s', rates, '>= 6'),
            against(EARLIER, found, 'MB of records', sizes, '<= 0.4'),
            against(EARLIER, found, 'peak memory, MB', peaks, '<= 0.5')]


def sizes(rounds):
    """What the programs wrote in each Round in MB, list of float."""
    return [each.extra['file_mb'] for each in rounds]


def grow_convert(inputs):
    """Complete processes as in convert, for several --num_workers."""
    found = inputs.take_turns([converter(inputs, str(number), num_workers=number) for number in inputs.plan.workers],
                              rounds=3)
    return [Line(f'images/s, --num_workers {name}', rates(rounds)) for name, rounds in found.items()]


# ------------------------------------------------------------------------------------------- training


def our_training(inputs, name, steps, function='ours.training', **flags):
    """The Contender train.py, with so many steps a round."""
    train_record, val_record = inputs.records
    flags = {'dataset_train': train_record, 'dataset_val': val_record, 'output_dir': inputs.path(f'run_{name}'),
             'crop_size': inputs.plan.crop_size, 'fc_channels': inputs.plan.fc_channels, **flags}
    return Contender(name, function, {'steps': steps, 'flags': flags})


def train_4(inputs):
    """train.py at batch 4, its input included; against train.py with one constant batch, and against the same network,
    loss and torch.optim.Adam in PyTorch eager on one constant batch."""
    plan, constant = inputs.plan, 'one constant batch'
    found = inputs.take_turns([
        our_training(inputs, 'ours', plan.steps, batch_size=4),
        our_training(inputs, constant, plan.steps, 'ours.constant_batch', batch_size=4),
        *pytorch(TORCH, 'training', batch_size=4, crop_size=plan.crop_size, fc_channels=plan.fc_channels,
                 steps=plan.steps)], rounds=6)
    return [against(constant, found, 'images/s', rates, '>= 0.97'),
            against(TORCH, found, 'images/s', rates, '>= 1.25'),
            against(TORCH, found, 'peak memory, MB', peaks, '<= 1')]


def train_1(inputs):
    """Batch 1. The earlier loop: tf.cond over training and validation input by a placeholder, complete images decoded
    and cropped, and every 10th step (a round here) a second session.run for loss and histograms of all variables and
    gradients, written for TensorBoard. Ours has its log in the figure too: one step in 100 has histograms. Against
    PyTorch: the steps without histograms."""
    plan, loop = inputs.plan, f"{EARLIER}'s loop"
    settings = {'batch_size': 1, 'crop_size': plan.crop_size, 'fc_channels': plan.fc_channels}
    found = inputs.take_turns([
        our_training(inputs, 'ours', plan.window, batch_size=1, summary_steps=plan.window),
        Contender(loop, 'earlier_training.training', {
            **settings, 'records': inputs.records, 'steps': plan.window, 'log_dir': inputs.path('events')}),
        *pytorch(TORCH, 'training', **settings, steps=plan.torch_steps),
        *pytorch(FUSED, 'training', **settings, steps=plan.torch_steps, fused=True)], rounds=4)
    plain = {**found, 'ours': [each._replace(seconds=each.extra['plain']) for each in found['ours']]}
    return [against(loop, found, 'images/s, logs included', rates, '>= 1.3'),
            against(TORCH, plain, 'images/s', rates, '>= 1.25'),
            against(FUSED, plain, 'images/s', rates),
            against(TORCH, plain, 'peak memory, MB', peaks, '<= 1'),
            against(FUSED, plain, 'peak memory, MB', peaks)]


def grow_train(inputs):
    """train.py at several batch and crop sizes."""
    lines = []
    for batch, crop in inputs.plan.growth:
        name = f'batch {batch}, crop {crop}'
        found = inputs.take_turns([our_training(inputs, name, inputs.plan.steps, batch_size=batch, crop_size=crop)], 2)
        lines.append(Line(f'images/s, {name}', rates(found[name])))
    return lines


def machines(inputs):
    """Batches of 4 in all: two processes of a cluster, each on half the cores, against one process on all cores, and on
    half of them."""
    cores, steps, alone, half = measure.find_cores(), inputs.plan.steps, 'one process, all cores', 'one process, half'
    middle = (len(cores) + 1) // 2
    two = our_training(inputs, 'ours', steps, 'ours.chief_with_worker', batch_size=4, num_gpus=1)
    two.settings['worker_cores'] = cores[-middle:]
    found = inputs.take_turns([
        two._replace(cores=cores[:middle]), our_training(inputs, alone, steps, batch_size=4),
        our_training(inputs, half, steps, batch_size=4)._replace(cores=cores[:middle])], rounds=5)
    return [against(name, found, 'images/s, two processes', rates) for name in (alone, half)]


def reading(inputs):
    """The input without a network, batch 16; each round starts it anew and draws a quarter of its batches before the
    clock starts."""
    complete = 'decode whole, then crop'
    settings = {'record': inputs.records[0], 'batch_size': 16, 'crop_size': inputs.plan.crop_size,
                'num_batches': inputs.plan.reading_batches}
    found = inputs.take_turns([Contender('ours', 'ours.reading', settings),
                               Contender(complete, 'ours.complete_then_crop', settings)], rounds=5)
    return [against(complete, found, 'examples/s', rates, '>= 1.8')]


# ------------------------------------------------------------------------------------------- prediction, CRF


def predict(inputs):
    """One image after the other, from uint8 to the float32 softmax in NumPy; PyTorch eager in inference_mode."""
    height, width = inputs.plan.image_size
    settings = {'height': height, 'width': width, 'images': inputs.plan.predicted}
    found = inputs.take_turns([
        Contender('ours', 'ours.prediction', {**settings, 'checkpoint': inputs.checkpoint}),
        *pytorch(TORCH, 'prediction', **settings, fc_channels=inputs.plan.fc_channels)], rounds=6)
    return [against(TORCH, found, f'images/s of {width} x {height}', rates, '>= 1.25'),
            against(TORCH, found, 'peak memory, MB', peaks)]


def start(inputs):
    """Complete processes: `predict.py` with one photo and a checkpoint of full width, against a process that imports
    TensorFlow and reads the same weights."""
    least = 'import TensorFlow, read the weights'
    flags = {'checkpoint_path': inputs.checkpoint, 'images': inputs.data.photos()[0],
             'output_dir': inputs.path('predictions')}
    found = inputs.take_turns([program('ours', ['predict.py', *as_arguments(flags)]),
                               program(least, ['-c', READ_WEIGHTS, inputs.checkpoint])], rounds=4)
    return [against(least, found, 'seconds', lambda rounds: [each.seconds for each in rounds], '<= 1.5')]


def crf(inputs):
    """crf.refine on one core against pydensecrf with the same parameters on all 21 labels, on softmax maps; each round
    takes the next images, and the labels of all are compared. Decided maps: by a network that has learnt these images
    by heart (tools/overfit.py), whose probabilities are as clear as a well trained one's. Undecided maps: by the same
    network after a third of its steps, where most labels take part."""
    lines, plain, core = [], 'pydensecrf, 21 labels', measure.find_cores()[:1]
    for kind, folder in inputs.maps.items():
        settings = {'folder': folder, 'images': inputs.plan.crf_images}
        found = inputs.take_turns([Contender('ours', 'refinement.ours', settings, core),
                                   Contender(plain, 'refinement.all_labels', settings, core)], rounds=10)
        same = inputs.run_once('refinement.compare', folder=folder)
        lines += [against(plain, found, f'images/s on one core, {kind} maps', rates, '>= 2.2'),
                  Line(f'% of pixels equal, {same.items} {kind} maps', [same.extra['equal']], plain, target='>= 99.99')]
    return lines


def crf_pool(inputs):
    """The pool of two processes that evaluate.py uses, the images' way there and back included, against the same images
    in a loop."""
    settings = {'folder': next(iter(inputs.maps.values())), 'images': inputs.plan.pool_images}
    found = inputs.take_turns([Contender('ours', 'refinement.pool', settings),
                               Contender('one process', 'refinement.ours', settings)], rounds=6)
    return [against('one process', found, 'images/s, two processes', rates, '>= 1.8')]


ROWS = {function.__name__: function for function in (
    convert, train_4, train_1, reading, predict, start, crf, crf_pool, machines, grow_train, grow_convert)}
