"""The rows of the table: which contenders each one compares, and the lines that come of it.

A row is a function of inputs.Inputs that returns a list of page.compare's cells; its docstring, which the page shows,
tells how it is measured.
"""
import importlib.util
import os

from benchmarks.measure import Contender, as_arguments, call, peaks, rates
from benchmarks.page import compare

EAGER, FUSED = 'PyTorch eager', 'PyTorch, channels_last, fused Adam'
COMPILED = 'PyTorch compiled, weights frozen, channels_last'
READ_WEIGHTS = """
import sys
import tensorflow.compat.v1 as tf
checkpoint = tf.train.load_checkpoint(sys.argv[1])
print(sum(checkpoint.get_tensor(name).nbytes for name in checkpoint.get_variable_to_shape_map()), 'bytes read')
"""


def against(opponent, found, measured, figures, target='-'):
    """page.compare for an opponent out of take_turns' dict; `figures` is a function of list of Round to list."""
    return compare(measured, figures(found['ours']), opponent, figures(found.get(opponent, [])), target)


def against_both(tuned, found, measured, target):
    """The lines of `against` for both PyTorch contenders: speed, such as images/s, and memory."""
    return [against(name, found, *cells) for name, speed, memory in ((tuned, target, '<= 1x'), (EAGER, '-', '-'))
            for cells in ((measured, rates, speed), ('peak memory, MB', peaks, memory))]


def pytorch(function, tuned, **settings):
    """The PyTorch contenders, eager and `tuned` (a name); none where PyTorch is not installed."""
    return [call(name, f'pytorch_fcn.{function}', **settings, tuned=name == tuned)
            for name in (EAGER, tuned) if importlib.util.find_spec('torch')]


def train_batch(inputs, batch_size, target, steps=3):
    sizes = {'batch_size': batch_size, 'crop_size': inputs.crop_size, 'fc_channels': inputs.fc_channels}
    ours = call('ours', 'ours.training', records=inputs.records, output_dir=inputs.path('run'), steps=steps, **sizes)
    found = inputs.take_turns([ours, *pytorch('training', FUSED, steps=steps, **sizes)])
    return against_both(FUSED, found, 'images/s', target)


def train_4(inputs):
    """train.py at batch 4, its input included, without histograms; against the same network, loss and optimiser in
    PyTorch on one constant batch."""
    return train_batch(inputs, 4, '>= 1.5x')


def train_1(inputs):
    """As train_4, at batch 1."""
    return train_batch(inputs, 1, '>= 1.75x')


def predict(inputs):
    """One image after the other, from uint8 to the float32 softmax in NumPy; PyTorch in inference_mode."""
    (height, width), measured = inputs.photo_size, 'images/s of {} x {}'.format(*inputs.photo_size)
    sizes = {'height': height, 'width': width, 'images': 4}
    found = inputs.take_turns([call('ours', 'ours.prediction', checkpoint=inputs.checkpoint, **sizes),
                               *pytorch('prediction', COMPILED, fc_channels=inputs.fc_channels, **sizes)])
    return against_both(COMPILED, found, measured, '>= 1.15x')


def limit(inputs):
    """The rate of a product of two float32 matrices [2048, 2048] in TensorFlow, and what the network reaches of it in
    prediction and in a training step at batch 4. Counted are the operations of convolutions, fc6 and fc7."""
    from benchmarks.ours import count_operations
    (height, width), crop_size, fc_channels = inputs.photo_size, inputs.crop_size, inputs.fc_channels
    found = inputs.take_turns([
        call('product', 'ours.product', size=2048),
        call('prediction', 'ours.prediction', checkpoint=inputs.checkpoint, height=height, width=width, images=4),
        call('training', 'ours.training', records=inputs.records, output_dir=inputs.path('run'), steps=3, batch_size=4,
             crop_size=crop_size, fc_channels=fc_channels)])
    operations = {'prediction': count_operations(height, width, fc_channels),
                  'training': 3 * count_operations(crop_size, crop_size, fc_channels)}
    return [compare(f'10^9 operations/s, {name}', [number * rate for rate in rates(found[name])], 'matrix product',
                    rates(found['product'])) for name, number in operations.items()]


def start(inputs):
    """Complete processes: `predict.py` with one photo and a checkpoint of full width, against a process that imports
    TensorFlow and reads the same weights."""
    least = 'import TensorFlow, read the weights'
    flags = {'checkpoint_path': inputs.checkpoint, 'images': inputs.photos[0], 'output_dir': inputs.path('predictions')}
    found = inputs.take_turns([Contender('ours', ['predict.py', *as_arguments(flags)]),
                               Contender(least, ['-c', READ_WEIGHTS, inputs.checkpoint])])
    return [against(least, found, 'seconds', lambda rounds: [each.seconds for each in rounds], '<= 1.3x')]


def crf(inputs):
    """crf.refine on one core against pydensecrf with the same parameters on all 21 labels, on softmax maps of real
    images. Decided maps: by a network that has learnt these images by heart (tools/overfit.py), whose probabilities are
    as clear as a well trained one's. Undecided maps: by the same network after a third of its steps, where most labels
    take part."""
    from benchmarks import refinement
    lines, plain, core = [], 'pydensecrf, 21 labels', [min(os.sched_getaffinity(0))]
    for kind, folder in inputs.maps.items():
        found = inputs.take_turns([
            call(name, 'refinement.alone', core, folder=folder, photos=inputs.map_photos, plain=name == plain)
            for name in ('ours', plain)])
        equal, pixels = refinement.count_equal(folder, inputs.map_photos)
        lines += [against(plain, found, f'images/s on one core, {kind} maps', rates, '>= 2.2x'),
                  compare(f'equal pixels, {kind} maps', [equal], 'all pixels', [pixels], '>= 0.9999x')]
    return lines


def crf_pool(inputs):
    """The pool of two processes that evaluate.py uses, the images' way there and back included, against the same images
    in a loop."""
    maps = {'folder': next(iter(inputs.maps.values())), 'photos': inputs.map_photos}
    found = inputs.take_turns([call('ours', 'refinement.pool', **maps),
                               call('one process', 'refinement.alone', **maps)])
    return [against('one process', found, 'images/s, two processes', rates, '>= 1.8x')]


ROWS = {function.__name__: function for function in (train_4, train_1, predict, limit, start, crf, crf_pool)}
