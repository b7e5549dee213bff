"""Trains, evaluates and predicts on this machine's GPUs, and writes the figures side by side as a Markdown page.

    python -m benchmarks.gpu_check --report out/gpu_check.md

Every run is a process of its own. If one fails, the page has the last line of its output, and the others go on. On a
machine without a GPU the runs are small, and those that need one are left out. The runs are in a temporary folder
(TMPDIR) of at most 9 GB, which is removed.
"""
import datetime
import glob
import importlib.util
import json
import os
import shutil
import statistics
import tempfile

import numpy as np
import tensorflow as tf
from PIL import Image

import utils
from benchmarks import measure
from inference import devices
from report.page import read_table
from utils import UserError

NO_TF32 = {'NVIDIA_TF32_OVERRIDE': '0'}  # read by cuBLAS and cuDNN: float32 is float32
TWICE = ('deterministic', 'deterministic again')
TRAINING_HEAD = """
## Training

The same crops in the same order. images/s is the median of the log's lines without the first two; PyTorch gets one
constant batch, so it reads no files. The losses are per pixel.

| run | images/s | first loss | loss half-way | last loss | seconds in all |
|---|---|---|---|---|---|"""
PREDICTION_HEAD = """
## Evaluation and prediction

Weights of the first training. The differences are from the CPU.

| device | mean IoU | pixel accuracy | pixels of another class | seconds |
|---|---|---|---|---|"""
FULL = {'max_steps': 200, 'batch_size': 16, 'crop_size': 224, 'fc_channels': 4096}  # flags of train.py
SMALL = {'max_steps': 20, 'batch_size': 4, 'crop_size': 96, 'fc_channels': 512}


def parse_args(argv=None):
    parser = utils.ArgumentParser("Checks this machine's GPUs: training, evaluation and prediction, side by side.")
    parser.add_argument('--report', default='out/gpu_check.md', help='Markdown file to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    os.makedirs(os.path.dirname(args.report) or '.', exist_ok=True)
    with open(args.report, 'w', encoding='utf-8') as report, tempfile.TemporaryDirectory(prefix='gpu_check_') as folder:
        for text in check(folder):
            print(text, flush=True)
            print(text, file=report, flush=True)


def check(folder):
    """Runs everything in a folder and yields the page, line by line."""
    gpus = tf.config.list_physical_devices('GPU')
    size = FULL if gpus else SMALL
    yield describe_machine(len(gpus), size)
    measure.run_script(folder, 'tools/make_sample_dataset.py', output_dir=f'{folder}/VOC', num_train=64, num_val=16)
    measure.run_script(folder, 'convert_fcn_dataset.py', data_dir=f'{folder}/VOC', output_dir=folder)
    yield TRAINING_HEAD
    trainings = choose_trainings(len(gpus))
    for name, flags, environment in trainings:
        yield try_row(name, train, folder, name, flags, environment, size)
    if importlib.util.find_spec('torch'):
        for name, tf32, tuned in ([('PyTorch eager, float32', False, False)] + [
                ('PyTorch eager, TF32', True, False),
                ('PyTorch, bfloat16, channels_last, fused Adam', True, True)] * bool(gpus)):
            yield try_row(name, train_pytorch, folder, name, tf32, tuned, size)
    yield try_row('two runs with --deterministic', compare_runs, *(os.path.join(folder, name) for name in TWICE))
    yield PREDICTION_HEAD
    predictions = {'CPU': {'CUDA_VISIBLE_DEVICES': '-1'}, **({'GPU': {}, 'GPU, TF32 off': NO_TF32} if gpus else {})}
    for name, environment in predictions.items():
        yield try_row(name, predict, folder, os.path.join(folder, trainings[0][0]), name, environment)


def try_row(name, function, *args):
    """A line of a table with the cells that function(*args) returns, or with the reason why there are none."""
    try:
        cells = function(*args)
    except (UserError, OSError, ValueError, tf.errors.OpError) as error:
        cells = [' '.join(str(error).split()).replace('|', '/')[:300]]
    return f'| {" | ".join([name, *cells])} |'


def describe_machine(num_gpus, size):
    """The page's title, the GPUs, the libraries and the size of the runs, flags of train.py."""
    build = tf.sysconfig.get_build_info()
    return (f'# GPU check of {datetime.date.today()}\n\n- {devices.describe(num_gpus or 1)}\n'
            f'- built for CUDA {build.get("cuda_version")} and cuDNN {build.get("cudnn_version")}; '
            f'{len(os.sched_getaffinity(0))} CPU cores\n'
            f'- each training: {" ".join(measure.as_arguments(size))}, random start')


def choose_trainings(gpus):
    """The trainings for so many GPUs, list of (name, flags of train.py, environment variables)."""
    twice = [(name, ['--deterministic'], {}) for name in TWICE]
    if not gpus:
        return [('float32', [], {}), ('XLA', ['--xla'], {}), *twice]
    several = [(f'{gpus} GPUs', ['--num_gpus', str(gpus)], {})] if gpus > 1 else []
    return [('TF32', [], {}), ('float32', [], NO_TF32), ('mixed precision', ['--mixed_precision'], {}),
            ('XLA', ['--xla'], {}), ('XLA, mixed precision', ['--xla', '--mixed_precision'], {}), *several, *twice]


def train(folder, name, flags, environment, size):
    output_dir = os.path.join(folder, name)
    done = measure.run_script(
        folder, 'train.py', *flags, environment=environment, output_dir=output_dir, checkpoint_path='none',
        dataset_train=f'{folder}/fcn_train.record', dataset_val=f'{folder}/fcn_val.record', val_steps=0,
        summary_steps=0, log_steps=size['max_steps'] // 20, **size)
    cells = [*format_training(read_table(os.path.join(output_dir, 'train', 'log.csv'))), f'{done.seconds:.0f}']
    if name not in ('TF32', 'float32', *TWICE):  # whose weights are used afterwards
        shutil.rmtree(output_dir)  # 1.6 GB
    return cells


def format_training(rows):
    """Cells of a run's row: speed and three losses, from the rows of a log."""
    speed = statistics.median(row['images_per_second'] for row in rows[2:])
    return [f'{speed:.1f}', *(f'{rows[place]["loss_per_pixel"]:.6f}' for place in (0, len(rows) // 2, -1))]


def train_pytorch(folder, name, tf32, tuned, size):
    """Trains the same network in PyTorch; returns the cells of its row."""
    sizes = {name: number for name, number in size.items() if name != 'max_steps'}
    done = measure.run(measure.call(name, 'pytorch_fcn.training', steps=size['max_steps'], tuned=tuned, tf32=tf32,
                                    bfloat16=tuned, **sizes), folder)
    return [f'{done.items / done.seconds:.1f}', '', '', '', f'{done.seconds:.0f}']


def compare_runs(*output_dirs):
    """Whether two runs ended with the same weights, as a cell."""
    first, second = ({name: checkpoint.get_tensor(name) for name in checkpoint.get_variable_to_shape_map()}
                     for checkpoint in (tf.train.load_checkpoint(f'{folder}/train') for folder in output_dirs))
    equal = sum(np.array_equal(first[name], second[name]) for name in first)
    return [f'{equal} of {len(first)} variables are equal bit for bit']


def predict(folder, checkpoint, name, environment):
    """Runs evaluate.py and predict.py; returns the cells of the device's row."""
    output_dir, photos = os.path.join(folder, f'on {name}'), sorted(glob.glob(f'{folder}/VOC/JPEGImages/*'))[:8]
    done = [measure.run_script(folder, 'evaluate.py', dataset=f'{folder}/fcn_val.record', output_dir=output_dir,
                               environment=environment, checkpoint_path=checkpoint),
            measure.run_script(folder, 'predict.py', '--images', *photos, output_dir=f'{output_dir}/maps',
                               environment=environment, checkpoint_path=checkpoint)]
    with open(f'{output_dir}/metrics.json') as file:
        metrics = json.load(file)
    of_cpu, own = (np.concatenate([np.asarray(Image.open(path)).ravel() for path in sorted(glob.glob(pattern))])
                   for pattern in (f'{folder}/on CPU/maps/*.png', f'{output_dir}/maps/*.png'))
    return [f'{metrics["mean_iou"]:.6f}', f'{metrics["pixel_accuracy"]:.6f}',
            f'{np.count_nonzero(own != of_cpu)} of {own.size}', f'{sum(each.seconds for each in done):.0f}']


if __name__ == '__main__':
    utils.run_program(main)
