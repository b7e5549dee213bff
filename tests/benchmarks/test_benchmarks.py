"""The benchmarks' statistics by hand, their opponents' claims, the page line by line, and every row once."""
import functools
import importlib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

import predict
import train
import utils
from benchmarks import __main__ as program
from benchmarks import inputs, measure, ours, page, refinement, rows
from benchmarks.measure import Contender, Round
from inference import crf
from tools import make_sample_dataset

needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None,
                                 reason='PyTorch is not installed: pip install torch==2.13.0')

# ------------------------------------------------------------------------------------------- statistics


def test_rates_and_peaks_are_per_second_and_in_megabytes():
    rounds = [Round(items=8, seconds=2.0, peak_bytes=3_500_000), Round(items=8, seconds=4.0, peak_bytes=4_000_000)]
    assert measure.rates(rounds) == [4.0, 2.0]
    assert measure.peaks(rounds) == [3.5, 4.0]


def test_only_calls_after_the_warm_up_are_timed(monkeypatch):
    seconds = iter([100.0, 107.0])
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: next(seconds))
    called = []
    assert measure.time_calls(lambda: called.append(1), 5, items=4, warm_up=2) == (20, 7.0)
    assert len(called) == 7


def test_the_first_two_steps_of_a_training_are_not_timed(monkeypatch, tmp_path):
    flags = []
    monkeypatch.setattr(ours.train, 'main', flags.extend)
    monkeypatch.setattr(ours, 'read_table', lambda path: [
        {'images_per_second': 4 / seconds} for seconds in (50, 9, 2, 1, 3)])
    assert ours.training(['a', 'b'], str(tmp_path), steps=3, batch_size=4, crop_size=32) == (12, pytest.approx(6.0))
    assert flags[flags.index('--max_steps') + 1] == '5'


# ------------------------------------------------------------------------------------------- the page


def test_lines_of_the_page():
    # The ratio is the median of 400 / 50, 420 / 60, 380 / 40; the medians' own would be the same, their spread not.
    assert page.compare('images/s', [400.0, 420.0, 380.0], 'PyTorch', [50.0, 60.0, 40.0], '>= 6x') == [
        'images/s', '400 (380..420)', 'PyTorch', '50.00 (40.00..60.00)', '8.00x (7.00x..9.50x)', '3', '>= 6x']
    assert page.compare('images/s', [6.0, 4.0, 10.0], 'other', [2.0, 4.0, 5.0])[4] == '2.00x (1.00x..3.00x)'
    assert page.compare('peak memory, MB', [66.0], 'PyTorch', [60.0], '<= 0.5x') == [
        'peak memory, MB', '66.00', 'PyTorch', '60.00', '1.10x', '1', '<= 0.5x']
    assert page.compare('images/s', [1.234, 0.01234], 'PyTorch eager', []) == [
        'images/s', '0.62 (0.01..1.23)', 'PyTorch eager', 'not installed', '-', '2', '-']
    assert page.compare('equal pixels', [1124998], 'all pixels', [1125000])[1:5] == [
        '1,124,998', 'all pixels', '1,125,000', '1.00x']
    with pytest.raises(ValueError):
        page.compare('images/s', [1.0, 2.0], 'other', [1.0])


def test_a_page_has_machine_lines_remarks_and_methods(tmp_path):
    path = tmp_path / 'page.md'
    page.write_page(str(path), ['- machine: one'], [['start', 'seconds', '5.00']], {'start': 'it\n    is so.'})
    text = path.read_text()
    assert text.startswith('# Benchmarks\n\n- machine: one\n\n')
    assert '| target |\n|---|---|---|---|---|---|---|---|\n| start | seconds | 5.00 |\n\n## Remarks\n\n' in text
    assert text.endswith('\n\n## What the rows measure\n\n- **start**: it is so.\n')


def test_the_machine_is_described():
    machine, versions = page.describe_surroundings()
    assert re.match(r'- machine: .+, \d+ cores, \d+\.\d GiB of memory; no GPU is used; load', machine)
    assert f'tensorflow {tf.__version__}, ' in versions


# ------------------------------------------------------------------------------------------- contenders


def test_turns_alternate_and_a_failure_is_one_line(tmp_path, capfd):
    contenders = [Contender('one', ['-c', 'import time; time.sleep(.3); print(1)'], 3),
                  Contender('two', ['-c', 'import time; x = bytearray(100_000_000); time.sleep(.3)'], 3)]
    found = measure.take_turns(contenders, 2, str(tmp_path))
    assert [line.split(':')[0].strip() for line in capfd.readouterr().out.splitlines()] == [
        'round 1/2, one', 'round 1/2, two', 'round 2/2, one', 'round 2/2, two']
    assert all(0.3 < each.seconds < 5 and each.items == 3 for rounds in found.values() for each in rounds)
    small, large = (max(measure.peaks(rounds)) for rounds in found.values())
    assert 5 < small < 50 and 95 < large - small < 110
    assert (tmp_path / 'one.log').read_text() == '1\n'

    with pytest.raises(utils.UserError, match=r'^three: the end \(exit code 1\); see .*three.log$'):
        measure.run(Contender('three', ['-c', 'raise SystemExit("the end")']), str(tmp_path))


def test_environment_and_cores_reach_the_process(tmp_path):
    code = 'import os; print(os.environ["NVIDIA_TF32_OVERRIDE"], len(os.sched_getaffinity(0)))'
    measure.run(Contender('one', ['-c', f'import time; time.sleep(.2); {code}'], cores=[min(os.sched_getaffinity(0))],
                          environment={'NVIDIA_TF32_OVERRIDE': '0'}), str(tmp_path))
    assert (tmp_path / 'one.log').read_text() == '0 1\n'


def test_a_contender_times_itself(tmp_path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / 'a.png')
    np.savez(tmp_path / 'a_probabilities.npz', probabilities=np.full((9, 9, 21), 1 / 21, np.float16))
    done = measure.run(measure.call('CRF', 'refinement.alone', folder=str(tmp_path), photos=[str(tmp_path / 'a.png')]),
                       str(tmp_path))
    assert done.items == 1 and 0 < done.seconds < 1 and done.peak_bytes > 5e6


def draw_voc(folder):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (('LONG_SIDE', (80, 81)), ('SHORT_SIDE', (60, 61)), ('UPRIGHT', 0)):
            patch.setattr(make_sample_dataset, name, value)
        make_sample_dataset.main(['--output_dir', folder, '--num_train', '6', '--num_val', '6'])


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('voc'))
    draw_voc(folder)
    return folder


def load_weights(network, variables):
    """Sets a PyTorch network's weights from those of train.fcn, dict of name to array."""
    import torch

    def to_torch(kernel):  # the last axes come first
        return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))

    fc8 = [f'fc8/conv_{pool}' for pool in ('pool4', 'pool3')]
    names = [name[7:-8] for name in variables if re.match('vgg_16/conv.*/weights', name)] + ['fc6', 'fc7', 'fc8'] + fc8
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    for name, layer in zip(names, layers, strict=True):
        layer.weight.data = to_torch(variables[f'vgg_16/{name}/weights'])
        layer.bias.data = torch.from_numpy(variables[f'vgg_16/{name}/biases'])
    for name, layer in zip(('x2_1', 'x2_2', 'x8'), network.upscores):
        layer.weight.data = to_torch(variables[f'vgg_16/fc8/t_conv_{name}'])


@pytest.mark.slow
@needs_torch
def test_pytorch_gives_the_logits_and_the_loss_of_our_network(full_network):
    import torch

    from benchmarks import pytorch_fcn
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (2, 50, 71, 3)).astype(np.float32)
    labels = rng.choice([*range(21), 255], (2, 50, 71)).astype(np.int32)
    logits = train.fcn(tf.constant(image), train.Network(fc_channels=16))
    loss, *_ = train.segmentation_loss(logits, tf.constant(labels))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([tf.assign(variable, rng.normal(0, 0.03, variable.shape.as_list()))  # zeros would hide mistakes
                     for variable in tf.trainable_variables() if re.search('biases|fc8', variable.op.name)])
        values, expected, expected_loss = session.run(
            [{v.op.name: v.value() for v in tf.trainable_variables()}, logits, loss])
    network = pytorch_fcn.FCN8s(fc_channels=16).eval()
    assert sum(p.numel() for p in network.parameters()) == sum(value.size for value in values.values())
    load_weights(network, values)
    with torch.inference_mode():
        found = network(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        found_loss = pytorch_fcn.segmentation_loss(found, torch.from_numpy(labels.astype(np.int64)))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(float(found_loss), expected_loss, rtol=1e-4)

    softmax, tuned = (pytorch_fcn.predict(network, image[0].astype(np.uint8), tuned) for tuned in (False, True))
    assert softmax.dtype == np.float32 and softmax.shape == (50, 71, 21)
    np.testing.assert_allclose(tuned, softmax, rtol=1e-4, atol=1e-6)


@needs_torch
@pytest.mark.slow
def test_pytorch_contenders_run():
    from benchmarks import pytorch_fcn
    for tuned in (False, True):
        items, seconds = pytorch_fcn.training(steps=2, batch_size=2, crop_size=32, fc_channels=8, tuned=tuned)
        assert items == 4 and seconds > 0
        items, seconds = pytorch_fcn.prediction(height=40, width=50, fc_channels=8, images=3, tuned=tuned)
        assert items == 3 and seconds > 0


def test_plain_pydensecrf_has_the_parameters_of_refine(pairs):
    image, label = pairs[4]
    coarse = cv2.blur(np.eye(21, dtype=np.float32)[np.where(label == 255, 0, label)], (9, 9)) + 0.01
    probabilities = coarse / coarse.sum(-1, keepdims=True)
    theirs = refinement.plain_pydensecrf(image, probabilities)
    assert np.mean(crf.refine(image, probabilities) == theirs) > 0.999
    assert np.mean(theirs != probabilities.argmax(-1)) > 0.005  # it does change something


# ------------------------------------------------------------------------------------------- all rows


def run_here(known, contender, log_dir):
    """In measure.run's place, because importing TensorFlow takes seconds; a form of training runs once for all rows."""
    script, *arguments = contender.arguments
    if arguments[0] == 'benchmarks.measure':
        name, settings = arguments[1], json.loads(arguments[2])
        if name not in known or name != 'ours.training':
            module, function = name.split('.')
            known[name] = getattr(importlib.import_module(f'benchmarks.{module}'), function)(**settings)
        return Round(*json.loads(json.dumps(known[name])), peak_bytes=10 ** 6)
    if script == '-m':
        importlib.import_module(arguments[0]).main(arguments[1:])
    elif script != '-c':
        runpy.run_path(os.path.join(measure.ROOT, script), run_name='script')['main'](arguments)
    return Round(contender.items, 1.0, peak_bytes=10 ** 6)


@pytest.fixture
def shared(voc, tmp_path, monkeypatch):
    """Small Inputs, whose contenders run in this process."""
    monkeypatch.setattr(measure, 'run', functools.partial(run_here, {}))
    return inputs.Inputs(voc, str(tmp_path), str(tmp_path), rounds=1, fc_channels=8, crop_size=32, photo_size=(40, 50),
                         map_steps=3)


def measured_rows(names, shared, tmp_path):
    """Measures rows and returns the cells of the page's table."""
    program.measure_rows(names, shared, str(tmp_path / 'page.md'))
    lines = [line.split(' | ') for line in (tmp_path / 'page.md').read_text().splitlines() if line.startswith('| ')]
    assert {len(line) for line in lines} == {8}
    assert {line[0] for line in lines} == {f'| {row}' for row in names} | {'| row'}
    return lines


def test_rows_without_training_run(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, 'pytorch', lambda *args, **settings: [])
    lines = measured_rows(['predict'], shared, tmp_path)
    assert ['not installed' in line for line in lines].count(True) == 4  # two opponents' speed and memory


@pytest.mark.slow
def test_the_other_rows_run(shared, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, 'pytorch', lambda *args, **settings: [])
    predict.main(['--checkpoint_path', f'{trained}/train/model.ckpt-3', '--save_probabilities', '--output_dir',
                  str(tmp_path / 'maps'), '--images', *shared.map_photos])
    shared.maps = {'given': str(tmp_path / 'maps')}
    measured_rows([name for name in rows.ROWS if name != 'predict'], shared, tmp_path)


@pytest.mark.slow
def test_maps_are_decided_and_undecided(shared, full_network):
    try:
        assert list(shared.maps) == ['decided', 'undecided']
    except utils.UserError as error:  # the package index cannot be reached
        assert 'pip cannot fetch' in str(error)
        pytest.skip(str(error))
    for folder in shared.maps.values():
        maps = refinement.load_maps(folder, shared.map_photos)
        assert [softmax.shape for _, softmax in maps] == [(60, 80, 21)] * 6


@pytest.mark.slow
def test_a_row_in_processes_of_its_own(voc, tmp_path):
    """As `make bench` runs it."""
    program.main(['--data_dir', voc, '--output_dir', str(tmp_path), '--rows', 'start', '--rounds', '1'])
    assert '| start | seconds | ' in (tmp_path / 'benchmarks.md').read_text()
    assert sorted(os.listdir(tmp_path)) == ['benchmarks.md', 'logs']


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='none/ImageSets/Segmentation/val.txt'):
        program.main(['--data_dir', str(tmp_path / 'none'), '--output_dir', str(tmp_path)])
    done = subprocess.run([sys.executable, '-m', 'benchmarks', '--rows', 'nothing'], cwd=measure.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('benchmarks: error: ') and done.stderr.count('\n') == 1


def test_a_row_that_fails_leaves_those_before_on_the_page(shared, tmp_path, monkeypatch):
    def first(shared):
        """It fails."""
        raise utils.UserError('no opponent')

    def second(shared):
        """It does not."""
        return [['seconds', '5.00']]
    monkeypatch.setattr(rows, 'ROWS', {'first': first, 'second': second})
    with pytest.raises(utils.UserError, match='^no opponent$'):
        program.measure_rows(['second', 'first'], shared, str(tmp_path / 'page.md'))
    assert '| second | seconds | 5.00 |' in (tmp_path / 'page.md').read_text()


def test_operations_of_the_published_network(full_network):
    """VGG16's 3x3 convolutions have 15.35 * 10^9 multiplications at 224 x 224 pixels, fc6 and fc7 in each of the 7 x 7
    cells one for each weight."""
    weights = 7 * 7 * 512 * 4096 + 4096 * 4096
    assert ours.count_operations(224, 200, 4096) == pytest.approx(2 * (15.35 + 49 * weights / 1e9), rel=1e-3)
