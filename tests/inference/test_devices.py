"""Which devices compute, and what a user sees of them and of their failures. The lists of GPUs are faked."""
import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_photo, short_run
from lives import PATIENCE, ROOT
from PIL import Image
from tensorflow.python.eager.context import PhysicalDevice

import evaluate
import predict
import train
import utils
from datasets.batches import build_reader, run_input
from inference import devices, weights
from training import session, towers
from utils import UserError

CURE = r"pip install 'tensorflow\[and-cuda\]==2.21.0'"


@pytest.fixture
def fake_gpus(monkeypatch):
    """A function that makes TensorFlow list so many GPUs."""
    def fake(number):
        gpus = [PhysicalDevice(f'/physical_device:GPU:{index}', 'GPU') for index in range(number)]
        monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: gpus)
        monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda _: {'device_name': 'NVIDIA H100'})
    return fake


@pytest.fixture
def fake_nvidia_smi(monkeypatch, tmp_path):
    """A function that makes nvidia-smi end with an exit code, on a machine without a GPU that TensorFlow sees."""
    def fake(code):
        program = tmp_path / 'nvidia-smi'
        program.write_text(f'#!/bin/sh\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    return fake


# ------------------------------------------------------------------------------------------- G1: the first lines


def test_g1_a_driver_without_cuda_libraries_is_named(fake_nvidia_smi):
    fake_nvidia_smi(0)
    line = devices.describe()
    assert 'computes on the CPU' in line and 'warning: nvidia-smi works, but' in line
    assert "pip install 'tensorflow[and-cuda]==2.21.0', or update the driver" in line


def test_g1_without_a_driver_nothing_is_missing(fake_nvidia_smi):
    fake_nvidia_smi(9)
    assert devices.describe() == f'TensorFlow {tf.__version__} computes on the CPU, {os.cpu_count()} cores'


def test_g1_a_program_that_cannot_be_started_is_no_driver(fake_nvidia_smi, tmp_path):
    fake_nvidia_smi(0)
    (tmp_path / 'nvidia-smi').write_text('')  # has no interpreter
    assert 'warning' not in devices.describe()


@pytest.mark.parametrize('value', ['', '-1'])
def test_g1_hidden_gpus_are_named(fake_nvidia_smi, monkeypatch, value):
    fake_nvidia_smi(0)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', value)
    line = devices.describe()
    assert line.endswith(f'cores; CUDA_VISIBLE_DEVICES={value} hides GPUs') and 'warning' not in line


def test_the_choice_of_a_gpu_hides_none(fake_nvidia_smi, monkeypatch):
    fake_nvidia_smi(0)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    line = devices.describe()
    assert 'hides' not in line and 'warning: nvidia-smi works, but TensorFlow cannot use the GPU' in line


def test_g1_a_gpu_that_the_driver_does_not_know(fake_gpus, monkeypatch):
    fake_gpus(1)
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda _: {})
    assert devices.describe().endswith('computes on 1 of 1 GPUs, of unknown model')


def run_program(name, record, trained, tmp_path, *more):
    """One of the programs in this process."""
    checkpoint = str(trained / 'train')
    if name == 'train':
        train.main(short_run(record, tmp_path / 'run', '--max_steps', 1, *more))
    elif name == 'evaluate':
        evaluate.main(['--checkpoint_path', checkpoint, '--dataset', record, '--output_dir', str(tmp_path / 'scores')])
    else:
        Image.fromarray(draw_photo(20, 30)).save(tmp_path / 'a.png')
        predict.main(['--checkpoint_path', checkpoint, '--images', str(tmp_path / 'a.png'), '--output_dir',
                      str(tmp_path / 'out')])


programs = pytest.mark.parametrize('name', [pytest.param('train', marks=pytest.mark.slow), 'evaluate', 'predict'])


@programs
def test_g1_the_first_lines_name_devices_weights_and_classes(small_runs, trained, record, tmp_path, capsys, name):
    run_program(name, record, trained, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'TensorFlow {tf.__version__} computes on the CPU, ')
    classes = 'classes: 21 (background, aeroplane, bicycle, ..., tvmonitor), from '
    if name == 'train':
        assert lines[1] == f'{classes}VOC, because {record}.json is missing; --classes FILE names others'
    else:
        assert lines[1] == f'weights: {trained}/train/model.ckpt-3'
        assert lines[2] == f'{classes}{trained}/train/settings.json'


# ------------------------------------------------------------------------------------------- G2: one GPU by default


@pytest.mark.slow
@programs
def test_g2_one_of_eight_gpus_computes(small_runs, trained, record, tmp_path, capsys, fake_gpus, name):
    """Two crops a step would not divide by 8."""
    fake_gpus(8)
    run_program(name, record, trained, tmp_path)
    assert capsys.readouterr().out.splitlines()[0] == (
        f'TensorFlow {tf.__version__} computes on 1 of 8 GPUs, NVIDIA H100; the others stay free (train.py --num_gpus '
        'uses more)')


@pytest.mark.parametrize('number', [1, 2, 8])
def test_g2_a_session_opens_no_other_gpu(fake_gpus, number):
    fake_gpus(8)
    for config in (devices.session_config(number), session.session_config(number)):
        assert dict(config.device_count) == {'GPU': number}
        assert config.gpu_options.visible_device_list == '0,1,2,3,4,5,6,7'[:2 * number - 1]
        assert config.gpu_options.allow_growth


@pytest.mark.slow
def test_g2_two_gpus_and_a_batch_of_one(small_runs, record, tmp_path, fake_gpus):
    fake_gpus(2)
    train.main(short_run(record, tmp_path, '--max_steps', 1, '--batch_size', 1))


@pytest.mark.slow
def test_g2_two_gpus_on_demand(small_runs, record, tmp_path, fake_gpus, capsys):
    fake_gpus(2)
    train.main(short_run(record, tmp_path, '--max_steps', 1, '--num_gpus', 2))
    assert 'computes on 2 of 2 GPUs, NVIDIA H100\n' in capsys.readouterr().out
    assert towers.place_here(2, 4).machines == [towers.Machine('/device:CPU:0', ['/device:GPU:0', '/device:GPU:1'],
                                                               (0, 4))]


def test_g2_more_gpus_than_visible_are_refused(fake_gpus):
    fake_gpus(2)
    with pytest.raises(UserError, match='--num_gpus 3: TensorFlow sees only 2; .*CUDA_VISIBLE_DEVICES'):
        train.main(['--num_gpus', '3'])


# ------------------------------------------------------------------------------------------- G3: failures

MEMORY = '^out of memory: lower --batch_size or --crop_size, or end other programs'
CUDNN = '^cuDNN or cuBLAS fails .*: end other programs on this GPU; if there are none, ' + CURE
DRIVER = '^the GPU or its driver fails .*: if nvidia-smi works, update the driver; CUDA_VISIBLE_DEVICES=-1 computes on'
FAILURES = [
    (tf.errors.NotFoundError, 'No algorithm worked!  Error messages:', MEMORY),
    (tf.errors.ResourceExhaustedError, 'OOM when allocating tensor with shape[16,64,224,224]', MEMORY),
    (tf.errors.ResourceExhaustedError, '', MEMORY),
    (tf.errors.InternalError, 'CUDNN_STATUS_ALLOC_FAILED in tensorflow/stream_executor/cuda/cuda_dnn.cc', MEMORY),
    (tf.errors.InternalError, 'Failed to allocate 1.5GiB', MEMORY),
    (tf.errors.InternalError, 'CUDA runtime: cudaSetDevice() on GPU:0 failed. Status: out of memory', MEMORY),
    (tf.errors.InternalError, 'failed to allocate 2.00G bytes from device: CUDA_ERROR_OUT_OF_MEMORY', MEMORY),
    (tf.errors.InternalError, 'Dst tensor is not initialized.', MEMORY),
    (tf.errors.FailedPreconditionError, 'DNN library initialization failed. Look at the errors above for more.', CUDNN),
    (tf.errors.UnimplementedError, 'DNN library is not found.', CUDNN),
    (tf.errors.InvalidArgumentError, 'No DNN in stream executor.', CUDNN),  # on an H200 whose memory was taken
    (tf.errors.InternalError, 'Could not create cudnn handle: CUDNN_STATUS_NOT_INITIALIZED', CUDNN),
    (tf.errors.UnknownError, 'Failed to get convolution algorithm. This is probably because cuDNN failed to', CUDNN),
    (tf.errors.InternalError, 'Attempting to perform BLAS operation using StreamExecutor without BLAS support', CUDNN),
    (tf.errors.InternalError, 'cudaGetDevice() failed. Status: CUDA driver version is insufficient for CUDA', DRIVER),
    (tf.errors.InternalError, 'Failed to synchronize: CUDA_ERROR_ILLEGAL_ADDRESS', DRIVER),
    (tf.errors.InternalError, 'no kernel image is available for execution on the device', DRIVER),
    (tf.errors.InvalidArgumentError, 'shapes do not match', '^TensorFlow fails at a step: shapes do not match$'),
    (tf.errors.NotFoundError, "Graph execution error:\n\nDetected at node 'a' defined at (most recent call last):\n"
     '    File "/home/me/dnn/train.py", line 1, in <module>\n'
     "Node: 'a'\n2 root error(s) found.\n  (0) NOT_FOUND: No such device\n\t [[{{node a}}]]\n  (1) CANCELLED\n0 suc",
     '^TensorFlow fails at a step: NOT_FOUND: No such device$'),
    (tf.errors.InternalError, '2 root error(s) found.\n  (0) INTERNAL: CUDNN_STATUS_INTERNAL_ERROR\n\t [[{{node a}}]]',
     '^cuDNN or cuBLAS fails .INTERNAL: CUDNN_STATUS_INTERNAL_ERROR.: '),
    (tf.errors.InternalError, 'the file room.record', '^TensorFlow fails at a step: the file room.record$')]


class FailingSession:
    """A session whose run() fails."""

    def __init__(self, error):
        self.error = error

    def run(self, *_):
        raise self.error


@pytest.mark.parametrize('kind, message, expected', FAILURES)
def test_g3_each_failure_has_a_line_of_its_own(monkeypatch, kind, message, expected):
    """The record is not blamed, and the failure comes through everything that train.main puts around it."""
    monkeypatch.setattr(train, 'train', lambda *_: run_input(FailingSession(kind(None, None, message)), 'fetch', 'a'))
    with pytest.raises(UserError, match=expected) as raised:
        train.main([])
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['evaluate', 'predict'])
@pytest.mark.parametrize('kind, message, expected', FAILURES[8:9] + FAILURES[13:14] + FAILURES[16:17])
def test_g3_evaluate_and_predict_end_alike(small_runs, trained, record, tmp_path, monkeypatch, name, kind,
                                           message, expected):
    def fail(*_):
        raise kind(None, None, message)

    monkeypatch.setattr(evaluate.averaging, 'average_probabilities', fail)
    with pytest.raises(UserError, match=expected):
        run_program(name, record, trained, tmp_path)


def test_g3_cudnn_without_memory_is_a_photo_too_large(small_runs, trained, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise tf.errors.NotFoundError(None, None, 'No algorithm worked!')

    monkeypatch.setattr(predict, 'predict', fail)
    run_program('predict', None, trained, tmp_path)
    assert 'a.png: out of memory; lower --tile or --max_side' in capsys.readouterr().err


def test_g3_the_record_is_blamed_for_its_own_faults_only(record):
    """The same session.run reads the record and computes; an op beside the iterator fails."""
    reader = build_reader(record, 5)
    with tf.Session() as opened:
        opened.run(reader.initializer)
        wrong = tf.linalg.matmul(tf.placeholder_with_default(np.ones((2, 3)), [None, None]), np.ones((2, 3)))
        with pytest.raises(tf.errors.InvalidArgumentError, match='Matrix size-incompatible'):
            run_input(opened, [reader.next_example, wrong], record)
    damaged = build_reader(record, 6)
    with tf.Session() as opened:
        opened.run(damaged.initializer)
        with pytest.raises(UserError, match='small.record: cannot be read or decoded .*contained only 5'):
            for _ in range(6):
                run_input(opened, damaged.next_example, record)


def test_g3_weights_are_not_called_damaged_when_the_gpu_fails(small_runs, trained, monkeypatch):
    def fail(*_):
        raise tf.errors.InternalError(None, None, 'CUDA driver version is insufficient for CUDA runtime version')

    monkeypatch.setattr(tf.train.Saver, 'restore', fail)
    with pytest.raises(tf.errors.InternalError):
        weights.restore(None, str(trained / 'train/model.ckpt-3'), [tf.get_variable('vgg_16/fc8/biases', [21])])


# ------------------------------------------------------------------------------------------- G5: TF32


@contextlib.contextmanager
def with_tf32():
    """TF32 as TensorFlow has it at the start, and restored afterwards."""
    tf.config.experimental.enable_tensor_float_32_execution(True)
    try:
        yield tf.config.experimental.tensor_float_32_execution_enabled
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)


def test_g5_evaluate_computes_without_tf32(small_runs, trained, record, tmp_path):
    with with_tf32() as enabled:
        run_program('evaluate', record, trained, tmp_path)
        assert not enabled()


@pytest.mark.parametrize('deterministic', [False, True])
def test_g5_a_deterministic_training_has_no_tf32(monkeypatch, deterministic):
    monkeypatch.setattr(session.tensorflow.config.experimental, 'enable_op_determinism', lambda: None)  # is for good
    with with_tf32() as enabled:
        session.prepare_process(1, deterministic, xla=False, mixed_precision=False)
        assert enabled() != deterministic


def test_g6_the_help_says_where_determinism_was_tested(capsys):
    with pytest.raises(SystemExit):
        train.main(['--help'])
    assert 'tested on CPUs' in ' '.join(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------- start-up noise


def run_python(*arguments, env=None):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=PATIENCE)


@pytest.mark.slow
def test_a_program_prints_no_notices_of_tensorflow():
    done = run_python('evaluate.py', '--checkpoint_path', 'missing')
    assert done.returncode == 1 and done.stdout.startswith('TensorFlow 2.21.0 computes on ')
    assert done.stderr == ('evaluate.py: error: missing: no checkpoint there; give the folder of a run (best/ comes of '
                           '--eval_steps), or a checkpoint without .index or .data-00000-of-00001\n')


def test_real_errors_pass_the_filter_even_in_a_crash(capfd):
    """Lines in the form of TensorFlow's; a notice, a lack of libraries, and the last words of a crash."""
    with utils.without_noise():
        os.write(2, b'I0000 port.cc:153] oneDNN custom operations are on. You may see\n'
                    b'E0000 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)\n'
                    b'W0000 gpu_device.cc:2341] Cannot dlopen some GPU libraries.\n'
                    b'E0000 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH\n')
    print('after', file=sys.stderr)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split('] ')[-1][:21] for line in lines] == ['Cannot dlopen some GP', 'failed call to cuInit', 'after']
    done = run_python('-c', 'import os, utils\nwith utils.without_noise():\n os.write(2, b"F0000 AVX is missing\\n")\n'
                            ' os.abort()')
    assert done.returncode < 0 and 'F0000 AVX is missing' in done.stderr


# ------------------------------------------------------------------------------------------- a real GPU


def test_a_session_on_a_real_gpu():
    """The default session has exactly one GPU. CUDA_VISIBLE_DEVICES, which hides GPUs from tests, is taken away."""
    if not devices.has_driver():
        pytest.skip('no GPU here')
    program = ('import tensorflow.compat.v1 as tf; from inference import devices; print(devices.describe());'
               'graph = tf.Graph().as_default(); graph.__enter__(); tf.config.list_physical_devices();'
               'session = tf.Session(config=devices.session_config());'
               'assert sum("GPU" in device.name for device in session.list_devices()) == 1;'
               'session.run(tf.nn.conv2d(tf.ones([1, 64, 64, 8]), tf.ones([3, 3, 8, 8]), 1, "SAME"))')
    environment = {name: value for name, value in os.environ.items() if name != 'CUDA_VISIBLE_DEVICES'}
    done = run_python('-c', program, env=environment)
    assert done.returncode == 0 and 'computes on 1 of ' in done.stdout, done.stdout + done.stderr
