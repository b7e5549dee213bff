"""The devices that compute: how many of them, which they are, and what their failures mean.

    print(describe())
    with tf.Session(config=session_config()) as session:
"""
import contextlib
import os
import re
import subprocess

import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

import utils
from utils import UserError, find_reason

INSTALL = f"pip install 'tensorflow[and-cuda]=={tf.__version__}'"
# What TensorFlow's messages hold when a device fails, and what the user is told; the first that fits counts.
FAILURES = (
    (r'\bOOM\b|out.of.memory|failed to allocate|_ALLOC_FAILED|No algorithm worked|Dst tensor is not initialized',
     'out of memory: {cure}end other programs (nvidia-smi lists those on the GPU)'),
    (r'DNN|cuBLAS|BLAS support|Blas .*launch failed',
     f'cuDNN or cuBLAS fails ({{reason}}): end other programs on this GPU; if there are none, {INSTALL}'),
    (r'CUDA driver|CUDA.error|CUDA runtime|cuInit|kernel image|\bPTX\b',
     'the GPU or its driver fails ({reason}): if nvidia-smi works, update the driver; CUDA_VISIBLE_DEVICES=-1 '
     'computes on the CPU'))


def session_config(num_gpus=1):
    """How sessions compute, a tf.ConfigProto: on so many GPUs, whose memory is taken as it is needed."""
    config = tf.ConfigProto(allow_soft_placement=True, device_count={'GPU': num_gpus})
    config.gpu_options.allow_growth = True
    # device_count alone would still open the other GPUs, and take some hundred MB of each.
    config.gpu_options.visible_device_list = ','.join(map(str, range(num_gpus)))
    # Constant folding would keep Adam's first zeros for good: half a gigabyte.
    config.graph_options.rewrite_options.constant_folding = RewriterConfig.OFF
    return config


def list_gpus():
    """The GPUs that TensorFlow sees, list of tf.config.PhysicalDevice."""
    with utils.without_noise():
        return tf.config.list_physical_devices('GPU')


def check_number(num_gpus):
    """Raises UserError if there are GPUs, but fewer than --num_gpus, int."""
    visible = len(list_gpus())
    if 0 < visible < num_gpus:
        raise UserError(f'--num_gpus {num_gpus}: TensorFlow sees only {visible}; lower it, or change '
                        'CUDA_VISIBLE_DEVICES, which selects the visible GPUs')


def describe(num_gpus=1):
    """TensorFlow's version and the devices that compute, str; it names what keeps GPUs from being used."""
    gpus = list_gpus()
    if gpus:
        details = map(tf.config.experimental.get_device_details, gpus[:num_gpus])
        names = ', '.join(sorted({each.get('device_name', 'of unknown model') for each in details}))
        more = '; the others stay free (train.py --num_gpus uses more)' if len(gpus) > num_gpus else ''
        devices = f'{num_gpus} of {len(gpus)} GPUs, {names}{more}'
    else:
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
        devices = f'the CPU, {os.cpu_count()} cores' + (
            f'; CUDA_VISIBLE_DEVICES={hidden} hides GPUs' if hidden in ('', '-1') else
            '; warning: nvidia-smi works, but TensorFlow cannot use the GPU, because CUDA libraries are missing or the '
            f'driver is too old: {INSTALL}, or update the driver' if has_driver() else '')
    return f'TensorFlow {tf.__version__} computes on {devices}'


def has_driver():
    try:
        return subprocess.run(['nvidia-smi'], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_failure(error):
    """The text of FAILURES, str, for an error of TensorFlow or a MemoryError; None if it is not a device's failure."""
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return FAILURES[0][1]
    message = re.sub('(?m)^ +File .*$', '', getattr(error, 'message', ''))  # paths where ops were defined
    return next((text for pattern, text in FAILURES if re.search(pattern, message, re.IGNORECASE)), None)


def is_out_of_memory(error):
    """Whether an error of TensorFlow, or a MemoryError, comes from a lack of memory, bool."""
    return find_failure(error) == FAILURES[0][1]


@contextlib.contextmanager
def explain_failures(memory_cure=''):
    """Turns TensorFlow's errors into a UserError of one line; also a decorator: @explain_failures().
    memory_cure is what helps when memory is short, str that ends in ', or '."""
    try:
        yield
    except (tf.errors.OpError, MemoryError) as error:
        text = find_failure(error) or 'TensorFlow fails at {op}: {reason}'
        op = getattr(getattr(error, 'op', None), 'name', 'a step')
        raise UserError(text.format(cure=memory_cure, op=op, reason=find_reason(error))) from error
