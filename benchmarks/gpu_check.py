"""Trains, evaluates and predicts on this machine's GPUs, and writes the figures side by side as a Markdown page.

    bash benchmarks/gpu_check.sh out/gpu_check.md

Every run is a process of its own. If one fails, the page shows the last line of its log, and the others go on. On a
machine without a GPU the runs are small, and those that need one are left out.
"""
import concurrent.futures
import csv
import datetime
import glob
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple
from unittest import mock

import numpy as np

import utils
from utils import UserError

PROGRAM_SECONDS = 300  # a program that runs longer than this hangs
NO_TF32 = {'NVIDIA_TF32_OVERRIDE': '0'}  # read by cuBLAS and cuDNN: float32 is float32
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
    parser.add_argument('--report', default='out/gpu_check.md', help='Markdown file to write; the runs go beside it')
    parser.add_argument('--small', action='store_true', help='small runs, as on a machine without a GPU')
    parser.add_argument('--steps', type=utils.positive_int, help='steps of each training, by default 200, small 20')
    parser.add_argument('--minutes', type=utils.positive_float, default=9.0, help='no run starts later than this')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    folder = os.path.splitext(args.report)[0]
    os.makedirs(folder, exist_ok=True)
    page = Page(args.report, args.minutes)
    devices = call_apart(describe_devices)
    gpus = len(devices['gpus'])
    size = SMALL if args.small or not gpus else FULL
    size = size._replace(steps=args.steps or size.steps)

    page.add(f'# GPU check of {datetime.date.today()}\n\n' + format_facts(devices, size))
    make_records(folder, size)
    page.add(TRAINING_HEAD)
    for name, flags, environment in choose_trainings(gpus):
        page.try_row(name, train, folder, name, flags, environment, size)
    if importlib.util.find_spec('torch'):
        for name in ('float32', 'TF32', 'bfloat16') if gpus else ('float32',):
            page.try_row(f'PyTorch, {name}', time_pytorch, name, size)
    page.add(f'\n{compare_checkpoints(folder, "deterministic", "deterministic again")}')

    page.add(PREDICTION_HEAD)
    reference = {}
    for name, environment in {'CPU': ON_CPU, **({'GPU': {}, 'GPU, TF32 off': NO_TF32} if gpus else {})}.items():
        page.try_row(name, predict, folder, name, environment, reference)
    print(f'\nreport: {args.report}; logs of the runs in {folder}')


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
    """The report, written line by line, so that a run that is broken off leaves what it found.

    Args:
        path: str, Markdown file. minutes: float, when the last row may begin.
    """

    def __init__(self, path, minutes):
        self.path, self.started, self.last_start = path, time.perf_counter(), 60 * minutes
        open(path, 'w').close()

    def add(self, text):
        """Appends text and prints it."""
        print(text, flush=True)
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(text + '\n')

    def try_row(self, name, function, *args):
        """Appends a row with the cells that function(*args) returns, or with the reason why there are none."""
        if time.perf_counter() - self.started > self.last_start:
            cells = ['left out: no time']
        else:
            try:
                cells = function(*args)
            except Exception as error:  # the page is about what fails, too
                cells = [' '.join(f'{error}'.split())[:200].replace('|', '/') or type(error).__name__]
        self.add('| ' + ' | '.join([name, *cells]) + ' |')


def format_facts(devices, size):
    """The machine and its libraries, Markdown list."""
    found = [*(f'nvidia-smi: {line}' for line in ask_nvidia_smi()),
             *(f'TensorFlow: {gpu}' for gpu in devices['gpus'] or ['no GPU']),
             f'TensorFlow {devices["tensorflow"]}, built for CUDA {devices["cuda"]} and cuDNN {devices["cudnn"]}; '
             f'Python {sys.version.split()[0]}, NumPy {np.__version__}; {len(os.sched_getaffinity(0))} CPU cores',
             f'loaded: {", ".join(devices["loaded"]) or "no CUDA library"}',
             f'{size.steps} steps, batches of {size.batch_size} crops of {size.crop_size} pixels, '
             f'{size.fc_channels} channels in fc6 and fc7, random start']
    return '\n'.join(f'- {line}' for line in found)


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
            raise UserError(f'no end after {PROGRAM_SECONDS} s; see {log_path}') from None
    if code:
        with open(log_path, errors='replace') as log:
            last = (['no output'] + log.read().split('\n'))[-2]
        raise UserError(f'exit code {code}: {last}; see {log_path}')
    return time.perf_counter() - started


def call_apart(function, *args, environment=None):
    """The result of function(*args) in a process of its own, where TensorFlow prints warnings and errors alone."""
    environment = {'TF_CPP_MIN_LOG_LEVEL': '1', **(environment or {})}
    with mock.patch.dict(os.environ, environment), concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context('spawn')) as process:
        return process.submit(function, *args).result()


def describe_devices():
    """TensorFlow's devices and libraries, dict. A small convolution and product load what a GPU needs."""
    import tensorflow as tf
    gpus = tf.config.list_physical_devices('GPU')
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    if gpus:
        tf.config.experimental.set_memory_growth(gpus[0], True)
        image = tf.nn.conv2d(tf.ones([1, 64, 64, 8]), tf.ones([3, 3, 8, 8]), 1, 'SAME')
        tf.linalg.matmul(image[0, 0], image[0, 0], transpose_b=True).numpy()
    with open('/proc/self/maps') as file:
        loaded = {os.path.realpath(line.split()[-1]) for line in file if '.so' in line}
    build = tf.sysconfig.get_build_info()
    return {'tensorflow': tf.__version__, 'cuda': build.get('cuda_version'), 'cudnn': build.get('cudnn_version'),
            'gpus': [f'{known.get("device_name")}, compute capability '
                     f'{".".join(map(str, known.get("compute_capability", "?")))}' for known in details],
            'loaded': sorted(os.path.basename(path) for path in loaded
                             if any(name in path for name in ('libcudart', 'libcublas.', 'libcudnn.', 'libcuda.')))}


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
    number = [] if '--num_gpus' in flags else ['--num_gpus', '1']
    seconds = run_program(
        ['train.py', '--output_dir', output_dir, '--dataset_train', os.path.join(folder, 'fcn_train.record'),
         '--dataset_val', os.path.join(folder, 'fcn_val.record'), '--max_steps', str(size.steps),
         '--batch_size', str(size.batch_size), '--crop_size', str(size.crop_size),
         '--fc_channels', str(size.fc_channels), '--val_steps', '0', '--summary_steps', '0',
         '--log_steps', str(max(1, size.steps // 20)), '--save_steps', '100000', *number, *flags],
        output_dir + '.log', environment)
    with open(os.path.join(output_dir, 'train', 'log.csv')) as file:
        return [*format_training(list(csv.DictReader(file))), f'{seconds:.0f}']


def format_training(rows):
    """Cells of a run's row: speed, its range, and three losses, from the rows of log.csv."""
    speeds = [float(row['images_per_second']) for row in rows][2:]
    losses = [float(row['loss_per_pixel']) for row in rows]
    return [f'{statistics.median(speeds):.1f}', f'{min(speeds):.1f} to {max(speeds):.1f}',
            *(f'{losses[place]:.6f}' for place in (0, len(losses) // 2, -1))]


def compare_checkpoints(folder, *names):
    """Whether two runs ended with the same weights, a sentence."""
    paths = [os.path.join(run_folder(folder, name), 'train') for name in names]
    try:
        different, total, largest = call_apart(find_differences, *paths, environment=ON_CPU)
    except Exception as error:  # one of the two has no checkpoint
        return f'Two runs with `--deterministic` could not be compared: {error}'
    if not different:
        return f'Two runs with `--deterministic`: all {total} variables are equal bit for bit.'
    return (f'Two runs with `--deterministic`: {different} of {total} variables **differ**, '
            f'by {largest:.3g} at most.')


def find_differences(*paths):
    """How many variables of two checkpoints differ, of how many, and their largest difference."""
    from tensorflow.compat.v1 import train as tf_train
    first, second = (tf_train.load_checkpoint(path) for path in paths)
    names = sorted(first.get_variable_to_shape_map())
    if names != sorted(second.get_variable_to_shape_map()):
        raise ValueError('their variables have other names')
    differences = [np.abs(np.subtract(first.get_tensor(name), second.get_tensor(name), dtype=np.float64)).max()
                   for name in names if not np.array_equal(first.get_tensor(name), second.get_tensor(name))]
    return len(differences), len(names), max(differences, default=0.0)


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
    checkpoint = run_folder(folder, choose_first(folder))
    output_dir, photos = run_folder(folder, 'on ' + name), sorted(glob.glob(f'{folder}/VOC/JPEGImages/*'))[:8]
    seconds = run_program(['evaluate.py', '--checkpoint_path', checkpoint, '--dataset', f'{folder}/fcn_val.record',
                           '--output_dir', output_dir], output_dir + '.evaluate.log', environment)
    seconds += run_program(['predict.py', '--checkpoint_path', checkpoint, '--images', *photos,
                            '--output_dir', output_dir + '/maps'], output_dir + '.predict.log', environment)
    with open(os.path.join(output_dir, 'metrics.json')) as file:
        metrics = json.load(file)
    found = {'maps': read_maps(output_dir + '/maps'),
             'probabilities': call_apart(compute_probabilities, checkpoint, photos, environment=environment)}
    found = {kind: np.concatenate([array.ravel() for array in arrays]) for kind, arrays in found.items()}
    for kind, values in found.items():
        reference.setdefault(kind, values)
    return [f'{metrics["mean_iou"]:.6f}', f'{metrics["pixel_accuracy"]:.6f}',
            f'{np.count_nonzero(found["maps"] != reference["maps"])} of {found["maps"].size}',
            f'{np.abs(found["probabilities"] - reference["probabilities"]).max():.2g}', f'{seconds:.0f}']


def choose_first(folder):
    """The first training that has a checkpoint, its name."""
    for name in ('TF32', 'float32'):
        if os.path.exists(os.path.join(run_folder(folder, name), 'train', 'checkpoint')):
            return name
    raise UserError('no training has a checkpoint')


def read_maps(folder):
    """The class maps that predict.py wrote, list of uint8 [H, W]."""
    from PIL import Image
    return [np.asarray(Image.open(path)) for path in sorted(glob.glob(f'{folder}/*.png'))]


def compute_probabilities(run, photos):
    """The network's softmax for photos, list of float32 [H, W, C]."""
    import tensorflow.compat.v1 as tf

    import train as program
    from datasets.photos import read_photo
    from inference import predictor, weights
    checkpoint = weights.find_checkpoint(run)
    with tf.Graph().as_default(), tf.Session(config=predictor.session_config()) as session:
        network = predictor.load_predictor(session, checkpoint, program.fcn, program.read_network(checkpoint))
        return [predictor.predict_image(session, network, read_photo(photo)) for photo in photos]


if __name__ == '__main__':
    utils.run_program(main)
