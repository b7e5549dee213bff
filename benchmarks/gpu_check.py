"""Trains, evaluates and predicts on this machine's GPUs, and writes the figures side by side as a Markdown page.

    bash benchmarks/gpu_check.sh out/gpu_check.md

Every run is a process of its own. If one fails, the page has the last line of its output, the terminal the last 30,
and the others go on. On a machine without a GPU the runs are small, and those that need one are left out. The runs are
in a temporary folder (TMPDIR) of at most 9 GB, which is removed.
"""
import csv
import datetime
import glob
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

import utils
from utils import UserError

PROGRAM_SECONDS = 300  # a program that runs longer than this hangs
LAST_START = 9 * 60  # seconds after which no run starts
NO_TF32 = {'NVIDIA_TF32_OVERRIDE': '0'}  # read by cuBLAS and cuDNN: float32 is float32
KEPT = ('TF32', 'float32', 'deterministic', 'deterministic again')  # runs whose weights are used afterwards
ON_CPU = {'CUDA_VISIBLE_DEVICES': '-1'}


class Size(NamedTuple):
    """How large the runs are: steps and crops of the training, channels of fc6 and fc7, pictures of the record."""
    steps: int
    batch_size: int
    crop_size: int
    fc_channels: int
    num_train: int
    num_val: int


FULL = Size(steps=200, batch_size=16, crop_size=224, fc_channels=4096, num_train=64, num_val=16)
SMALL = Size(steps=20, batch_size=4, crop_size=96, fc_channels=512, num_train=8, num_val=4)


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser("Checks this machine's GPUs: training, evaluation and prediction, side by side.")
    parser.add_argument('--report', default='out/gpu_check.md', help='Markdown file to write')
    parser.add_argument('--small', action='store_true', help='small runs, as on a machine without a GPU')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    os.makedirs(os.path.dirname(args.report) or '.', exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='gpu_check_') as folder:
        check(Page(args.report), folder, args.small)
    print(f'\nreport: {args.report}')


def check(page, folder, small):
    """Runs everything in a folder and fills the page; `small` has it small on a GPU too."""
    devices = call_apart(describe_devices)
    gpus = len(devices['gpus'])
    size = SMALL if small or not gpus else FULL

    page.add(f'# GPU check of {datetime.date.today()}\n\n' + format_facts(devices, size))
    make_records(folder, size)
    page.add(TRAINING_HEAD)
    for name, flags, environment in choose_trainings(gpus):
        page.try_row(name, train, folder, name, flags, environment, size)
    if importlib.util.find_spec('torch'):
        for name in ('float32', 'TF32', 'bfloat16') if gpus else ('float32',):
            page.try_row(f'PyTorch, {name}', time_pytorch, name, size)
    page.add(f'\n{compare_runs(folder, "deterministic", "deterministic again")}')

    page.add(PREDICTION_HEAD)
    reference = {}
    for name, environment in {'CPU': ON_CPU, **({'GPU': {}, 'GPU, TF32 off': NO_TF32} if gpus else {})}.items():
        page.try_row(name, predict, folder, name, environment, reference)


# ------------------------------------------------------------------------------------------- the page


TRAINING_HEAD = """
## Training

The same crops in the same order. images/s is the median of the log's lines without the first two; PyTorch gets one
constant batch, so it reads no files. The losses are per pixel.

| run | images/s | lowest to highest | first loss | loss half-way | last loss | seconds in all |
|---|---|---|---|---|---|---|"""
PREDICTION_HEAD = """
## Evaluation and prediction

Weights of the first training. The differences are from the CPU.

| device | mean IoU | pixel accuracy | pixels of another class | largest difference of a probability | seconds |
|---|---|---|---|---|---|"""


class Page:
    """The report, a Markdown file. It is written line by line, so that a check that is stopped leaves what it found."""

    def __init__(self, path):
        self.path, self.started = path, time.perf_counter()
        open(path, 'w').close()

    def add(self, text):
        """Appends text and prints it."""
        print(text, flush=True)
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(text + '\n')

    def try_row(self, name, function, *args):
        """Appends a row with the cells that function(*args) returns, or with the reason why there are none."""
        if time.perf_counter() - self.started > LAST_START:
            cells = ['left out: no time']
        else:
            try:
                cells = function(*args)
            except Exception as error:  # a failure is a result of this check
                cells = [' '.join(str(error).split())[:200].replace('|', '/') or type(error).__name__]
        self.add('| ' + ' | '.join([name, *cells]) + ' |')


def format_facts(devices, size):
    """The machine and its libraries, Markdown list."""
    lines = [*(f'nvidia-smi: {line}' for line in ask_nvidia_smi()),
             f'TensorFlow {devices["tensorflow"]}, built for CUDA {devices["cuda"]} and cuDNN {devices["cudnn"]}; '
             f'Python {sys.version.split()[0]}, NumPy {np.__version__}; {len(os.sched_getaffinity(0))} CPU cores',
             f'devices: {", ".join(devices["gpus"]) or "no GPU"}; loaded: {", ".join(devices["loaded"]) or "no CUDA"}',
             f'{size.steps} steps, batches of {size.batch_size} crops of {size.crop_size} pixels, '
             f'{size.fc_channels} channels in fc6 and fc7, random start']
    return '\n'.join(f'- {line}' for line in lines)


def ask_nvidia_smi():
    """One line a GPU, list of str; empty where there is no driver."""
    command = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


# ------------------------------------------------------------------------------------------- processes


def run_program(arguments, log_path, environment=None):
    """Runs `python ARGUMENTS` with its output in a file; returns its seconds.

    Raises:
        UserError: it failed; the message is the last line that it printed.
    """
    started = time.perf_counter()
    with open(log_path, 'w') as log:
        try:
            code = subprocess.run([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT,
                                  env={**os.environ, **(environment or {})}, timeout=PROGRAM_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = f'none after {PROGRAM_SECONDS} s'
    if code:
        with open(log_path, errors='replace') as log:
            lines = log.read().splitlines() or ['no output']
        print(*lines[-30:], sep='\n', flush=True)
        raise UserError(f'exit code {code}: {lines[-1]}')
    return time.perf_counter() - started


def call_apart(function, *args, environment=None):
    """The result of function(*args) in a process of its own, where TensorFlow prints warnings and errors alone."""
    environment = {'TF_CPP_MIN_LOG_LEVEL': '1', **(environment or {})}
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def describe_devices():
    """TensorFlow's devices and libraries, dict. A small convolution has a GPU's libraries loaded."""
    import tensorflow as tf
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        tf.nn.conv2d(tf.ones([1, 64, 64, 8]), tf.ones([3, 3, 8, 8]), 1, 'SAME').numpy()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    with open('/proc/self/maps') as file:
        files = {os.path.basename(os.path.realpath(line.split()[-1])) for line in file}
    build = tf.sysconfig.get_build_info()
    return {'tensorflow': tf.__version__, 'cuda': build.get('cuda_version'), 'cudnn': build.get('cudnn_version'),
            'gpus': ['{device_name}, compute capability {compute_capability}'.format(**known) for known in details],
            'loaded': sorted(name for name in files if name.startswith(('libcuda', 'libcublas.', 'libcudnn.')))}


# ------------------------------------------------------------------------------------------- training


def make_records(folder, size):
    """Draws the sample data and converts it to folder/fcn_{train,val}.record."""
    data = os.path.join(folder, 'VOC')
    run_program(['tools/make_sample_dataset.py', '--output_dir', data, '--num_train', str(size.num_train),
                 '--num_val', str(size.num_val)], os.path.join(folder, 'draw.log'))
    run_program(['convert_fcn_dataset.py', '--data_dir', data, '--output_dir', folder],
                os.path.join(folder, 'convert.log'))


def choose_trainings(gpus):
    """The trainings for so many GPUs, list of (name, flags of train.py, environment variables)."""
    deterministic = [(name, ['--deterministic'], {}) for name in ('deterministic', 'deterministic again')]
    if not gpus:
        return [('float32', [], {}), ('XLA', ['--xla'], {}), *deterministic]
    several = [(f'{gpus} GPUs', ['--num_gpus', str(gpus)], {})] if gpus > 1 else []
    return [('TF32', [], {}), ('float32', [], NO_TF32), ('mixed precision', ['--mixed_precision'], {}),
            ('XLA', ['--xla'], {}), ('XLA, mixed precision', ['--xla', '--mixed_precision'], {}), *several,
            *deterministic]


def run_folder(folder, name):
    """The folder of a run, str."""
    return os.path.join(folder, name.replace(', ', '_').replace(' ', '_'))


def train(folder, name, flags, environment, size):
    """Trains; returns the cells of the run's row."""
    output_dir = run_folder(folder, name)
    seconds = run_program(
        ['train.py', '--output_dir', output_dir, '--dataset_train', os.path.join(folder, 'fcn_train.record'),
         '--dataset_val', os.path.join(folder, 'fcn_val.record'), '--max_steps', str(size.steps),
         '--batch_size', str(size.batch_size), '--crop_size', str(size.crop_size),
         '--fc_channels', str(size.fc_channels), '--val_steps', '0', '--summary_steps', '0',
         '--log_steps', str(max(1, size.steps // 20)), '--save_steps', '100000', '--checkpoint_path', 'none', *flags],
        output_dir + '.log', environment)
    with open(os.path.join(output_dir, 'train', 'log.csv')) as file:
        cells = [*format_training(list(csv.DictReader(file))), f'{seconds:.0f}']
    if name not in KEPT:
        shutil.rmtree(output_dir)  # 1.6 GB
    return cells


def format_training(rows):
    """Cells of a run's row: speed, its range, and three losses, from the rows of log.csv."""
    speeds = [float(row['images_per_second']) for row in rows][2:]
    losses = [float(row['loss_per_pixel']) for row in rows]
    return [f'{statistics.median(speeds):.1f}', f'{min(speeds):.1f} to {max(speeds):.1f}',
            *(f'{losses[place]:.6f}' for place in (0, len(losses) // 2, -1))]


def compare_runs(folder, *names):
    """Whether two runs ended with the same weights, a sentence."""
    paths = [os.path.join(run_folder(folder, name), 'train') for name in names]
    try:
        different, total, largest = call_apart(find_differences, *paths, environment=ON_CPU)
    except Exception as error:  # one of the two has no checkpoint
        return f'Two runs with `--deterministic`: not compared ({error})'
    found = (f'{different} of {total} variables **differ**, by {largest:.3g} at most' if different else
             f'all {total} variables are equal bit for bit')
    return f'Two runs with `--deterministic`: {found}'


def find_differences(*paths):
    """How many variables of two checkpoints differ, of how many, and their largest difference."""
    from tensorflow.compat.v1.train import load_checkpoint
    first, second = ({name: checkpoint.get_tensor(name) for name in checkpoint.get_variable_to_shape_map()}
                     for checkpoint in map(load_checkpoint, paths))
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    differences = [np.abs(first[name].astype(float) - second[name]).max() for name in different]
    return len(different), len(first), max(differences, default=0.0)


def time_pytorch(precision, size):
    """Trains the same network in PyTorch on one constant batch; returns the cells of its row."""
    started = time.perf_counter()
    speeds = call_apart(train_pytorch, precision, size, environment=NO_TF32 if precision == 'float32' else {})
    return [f'{statistics.median(speeds):.1f}', f'{min(speeds):.1f} to {max(speeds):.1f}', '', '', '',
            f'{time.perf_counter() - started:.0f}']


def train_pytorch(precision, size):
    """Images/s of ten rounds of PyTorch's training, list of float, in its fastest eager form: channels last, the best
    of cuDNN's algorithms, fused Adam.
    """
    import torch

    from benchmarks import pytorch_fcn
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != 'float32'
    shape = size.batch_size, size.crop_size, size.crop_size
    images = torch.randint(0, 256, (size.batch_size, 3, *shape[1:])).float().to(device)
    labels = torch.randint(0, 21, shape).to(device)
    network = pytorch_fcn.FCN8s(size.fc_channels).to(device, memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    speeds, steps = [], max(1, size.steps // 20)
    for _ in range(12):
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=precision == 'bfloat16'):
                logits = network(images)
            loss = pytorch_fcn.segmentation_loss(logits.float(), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        speeds.append(steps * size.batch_size / (time.perf_counter() - started))
    return speeds[2:]


# ------------------------------------------------------------------------------------------- prediction


def predict(folder, name, environment, reference):
    """Runs evaluate.py and predict.py, and computes probabilities; returns the cells of the device's row.

    Args:
        folder: str. name: str, of the device. environment: dict, which makes programs use it.
        reference: dict of what the CPU found, filled by the first call.
    """
    checkpoint, output_dir = choose_first(folder), run_folder(folder, 'on ' + name)
    photos = sorted(glob.glob(f'{folder}/VOC/JPEGImages/*'))[:8]
    seconds = run_program(['evaluate.py', '--checkpoint_path', checkpoint, '--dataset', f'{folder}/fcn_val.record',
                           '--output_dir', output_dir], output_dir + '.evaluate.log', environment)
    seconds += run_program(['predict.py', '--checkpoint_path', checkpoint, '--images', *photos,
                            '--output_dir', output_dir + '/maps'], output_dir + '.predict.log', environment)
    with open(output_dir + '/metrics.json') as file:
        metrics = json.load(file)
    maps = [np.asarray(Image.open(path)) for path in sorted(glob.glob(output_dir + '/maps/*.png'))]
    probabilities = call_apart(compute_probabilities, checkpoint, photos, environment=environment)
    found = [np.concatenate([array.ravel() for array in arrays]) for arrays in (maps, probabilities)]
    of_cpu = reference.setdefault('found', found)
    return [f'{metrics["mean_iou"]:.6f}', f'{metrics["pixel_accuracy"]:.6f}',
            f'{np.count_nonzero(found[0] != of_cpu[0])} of {found[0].size}',
            f'{np.abs(found[1] - of_cpu[1]).max():.2g}', f'{seconds:.0f}']


def choose_first(folder):
    """The folder of the first training that has a checkpoint."""
    for name in ('TF32', 'float32'):
        if os.path.exists(os.path.join(run_folder(folder, name), 'train', 'checkpoint')):
            return run_folder(folder, name)
    raise UserError('no training has a checkpoint')


def compute_probabilities(run, photos):
    """The network's softmax for photos, list of float32 [H, W, C]."""
    import tensorflow.compat.v1 as tf

    import train as program
    from datasets.photos import read_photo
    from inference import devices, predictor, weights
    utils.quiet_tensorflow()
    checkpoint = weights.find_checkpoint(run)
    with tf.Graph().as_default(), tf.Session(config=devices.session_config()) as session:
        network = predictor.load_predictor(session, checkpoint, program.fcn, program.read_network(checkpoint))
        return [predictor.predict_image(session, network, read_photo(photo)) for photo in photos]


if __name__ == '__main__':
    utils.run_program(main)
