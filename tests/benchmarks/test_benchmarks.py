"""The benchmarks' statistics by hand, their opponents' claims, the page line by line, and every row once."""
import contextlib
import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

import train
import utils
from benchmarks import __main__ as program
from benchmarks import contend, earlier_training, inputs, measure, ours, page, refinement, rows
from benchmarks.measure import Contender, Round
from benchmarks.page import Line
from datasets import batches
from inference import crf

needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None,
                                 reason='PyTorch is not installed: pip install torch==2.13.0')

# ------------------------------------------------------------------------------------------- statistics


def test_statistics_by_hand():
    assert measure.summarise([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert measure.summarise([4.0, 1.0, 2.0, 8.0]) == (3.0, 1.0, 8.0)
    # The ratio is that of each round: 6 / 2, 4 / 4, 10 / 5; the medians' own would be 6 / 4.
    assert measure.ratios([6.0, 4.0, 10.0], [2.0, 4.0, 5.0]) == [3.0, 1.0, 2.0]
    assert measure.summarise(measure.ratios([6.0, 4.0, 10.0], [2.0, 4.0, 5.0]))[0] == 2.0
    with pytest.raises(ValueError, match='2 rounds against 1'):
        measure.ratios([1.0, 2.0], [1.0])


def test_rates_and_peaks_are_per_second_and_in_megabytes():
    rounds = [Round(items=8, seconds=2.0, peak_bytes=3_500_000), Round(items=8, seconds=4.0, peak_bytes=4_000_000)]
    assert measure.rates(rounds) == [4.0, 2.0]
    assert measure.peaks(rounds) == [3.5, 4.0]


def test_equal_pixels_are_counted_over_all_images():
    mine = [np.array([[0, 1], [2, 3]]), np.array([[5, 5, 5, 5]])]
    assert refinement.percent_equal(mine, [np.array([[0, 1], [2, 9]]), mine[1]]) == 100 * 7 / 8


def test_histograms_count_as_often_as_they_come():
    """Ten steps of 2 s, of which one takes 5 s more for its histograms, which come every 100 steps."""
    plain, logged = ours.share_histograms({step: 7.0 if step == 10 else 2.0 for step in range(3, 13)}, 10)
    assert plain == pytest.approx(20.0) and logged == pytest.approx(20.5)
    assert ours.share_histograms({1: 2.0, 2: 3.0}, 0) == (5.0, 5.0)


# ------------------------------------------------------------------------------------------- the page


def test_lines_of_the_page():
    lines = [('convert', Line('images/s', [400.0, 420.0, 380.0], 'earlier suite', [50.0, 60.0, 40.0], '>= 6')),
             ('convert', Line('peak memory, MB', [66.0], 'earlier suite', [60.0], '<= 0.5')),
             ('train_4', Line('images/s', [1.234, 1.3], 'PyTorch eager', 'not installed', '>= 1.25')),
             ('start', Line('seconds', [2.5, 0.01234, 12.36])),
             ('crf', Line('% of pixels equal', [99.99876], 'pydensecrf, 21 labels', target='>= 99.99'))]
    assert [page.format_line(*line) for line in lines] == [
        '| convert | images/s | 400 (380..420) | earlier suite | 50.0 (40.0..60.0) | 8.00x (7.00x..9.50x) | 3 | >= 6x '
        '| yes |',
        '| convert | peak memory, MB | 66.0 | earlier suite | 60.0 | 1.10x | 1 | <= 0.5x | no |',
        '| train_4 | images/s | 1.27 (1.23..1.30) | PyTorch eager | not installed | - | 2 | >= 1.25x | ? |',
        '| start | seconds | 2.50 (0.0123..12.4) | - | - | - | 3 | - | - |',
        '| crf | % of pixels equal | 99.9988% | pydensecrf, 21 labels | - | - | 1 | >= 99.99% | yes |']


def test_a_page_has_machine_lines_remarks_and_methods(tmp_path):
    path = tmp_path / 'page.md'
    page.write_page(str(path), ['- machine: one'], [('start', Line('seconds', [5.0]))], {'start': 'it\n    is so.'})
    text = path.read_text()
    assert text.startswith('# Benchmarks\n\n- machine: one\n\n')
    assert ("\n\n| row | measured | ours | opponent | the opponent's | ours / theirs | rounds | target | met |\n"
            '|---|---|---|---|---|---|---|---|---|\n| start | seconds | 5.00 | - | - | - | 1 | - | - |\n\n'
            '## Remarks\n\n') in text
    assert text.endswith('\n\n## What the rows measure\n\n- **start**: it is so.\n')


def test_the_machine_is_described():
    machine, _, versions = page.describe_surroundings()
    assert re.match(r'- machine: .+, \d+ cores, \d+\.\d GiB of memory; no GPU is used; load', machine)
    assert f'tensorflow {tf.__version__}, ' in versions


# ------------------------------------------------------------------------------------------- contenders


def test_turns_alternate_after_a_warm_up_and_a_failure_is_one_line(tmp_path, capfd):
    contenders = [rows.program('one', ['-c', 'import time; time.sleep(.3); print(1)'], 3),
                  rows.program('two', ['-c', 'import time; x = bytearray(100_000_000); time.sleep(.3)'], 3)]
    found = measure.take_turns(contenders, 2, str(tmp_path))
    assert [line.split(':')[0].strip() for line in capfd.readouterr().out.splitlines()] == [
        'round 1/2, one', 'round 1/2, two', 'round 2/2, one', 'round 2/2, two']
    assert [len(rounds) for rounds in found.values()] == [2, 2]
    assert all(0.3 < each.seconds < 2 for rounds in found.values() for each in rounds)
    small, large = (max(measure.peaks(rounds)) for rounds in found.values())
    assert 5 < small < 50 and 95 < large - small < 110
    assert (tmp_path / 'one.log').read_text() == '1\n' * 3

    with pytest.raises(utils.UserError, match=r'^three: python .* ended with exit code 3 .*; see .*three.log$'):
        measure.take_turns([rows.program('three', ['-c', 'raise SystemExit(3)'])], 1, str(tmp_path))


def test_a_contender_keeps_its_process_between_rounds(tmp_path):
    np.savez(tmp_path / '0.npz', image=np.zeros((9, 9, 3), np.uint8), probabilities=np.full((9, 9, 21), 1 / 21, 'f4'))
    contender = Contender('CRF', 'refinement.ours', {'folder': str(tmp_path), 'images': 2}, measure.find_cores()[:1])
    (tmp_path / 'logs').mkdir()
    with contextlib.closing(measure.Worker(contender, str(tmp_path / 'logs'))) as worker:
        first, second = worker.run_round(), worker.run_round()
        assert worker.process.is_running() and len(worker.process.cpu_affinity()) == 1
    assert not worker.process.is_running()
    assert first.items == second.items == 2 and second.peak_bytes >= first.peak_bytes > 5e6


def draw_voc(folder, num_train=6, num_val=4):
    subprocess.run([sys.executable, 'tools/make_sample_dataset.py', '--output_dir', folder, '--num_train',
                    str(num_train), '--num_val', str(num_val), '--height', '60', '--width', '80'],
                   cwd=measure.ROOT, check=True, stderr=subprocess.DEVNULL)


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('voc'))
    draw_voc(folder)
    return folder


def test_the_earlier_converter_gives_the_labels_of_the_masks(voc, tmp_path):
    from benchmarks import earlier_convert
    record = str(tmp_path / 'val.record')
    list_path = os.path.join(voc, 'ImageSets', 'Segmentation', 'val.txt')
    _, (_, _, ids) = inputs.find_data(voc, None).splits()
    earlier_convert.convert(os.path.join(voc, 'JPEGImages'), os.path.join(voc, 'SegmentationClass'), list_path, record)
    seen = set()
    for serialized, name in zip(tf.io.tf_record_iterator(record), ids, strict=True):
        feature = tf.train.Example.FromString(serialized).features.feature
        labels = np.frombuffer(feature['image/label'].bytes_list.value[0], np.uint8).reshape(60, 80)
        with Image.open(os.path.join(voc, 'SegmentationClass', name + '.png')) as mask:
            expected = np.array(mask)
        seen |= set(np.unique(expected))
        np.testing.assert_array_equal(labels, np.where(expected == 255, 0, expected))  # void was no class of its own
    assert len(seen) > 3 and 255 in seen


def test_the_earlier_batches_keep_image_and_label_together(record, pairs):
    """Brightness is 12 * class in these images (see conftest), filled up with 0."""
    batch = tf.data.make_one_shot_iterator(earlier_training.training_batches(record, 8, 48)).get_next()
    with tf.Session() as session:
        images, labels = session.run(batch)
    assert images.shape == (8, 48, 48, 3) and labels.shape == (8, 48, 48)
    brightness = np.where(labels == 255, 255, labels * 12)
    assert np.mean(np.abs(images[..., 0] - brightness) < 30) > 0.9


def load_weights(network, variables):
    """Sets a PyTorch network's weights from those of train.fcn, dict of name to array."""
    import torch

    from benchmarks.pytorch_fcn import to_torch
    fc8 = [f'fc8/conv_{pool}' for pool in ('pool4', 'pool3')]
    names = [name[7:-8] for name in variables if re.match('vgg_16/conv.*/weights', name)] + ['fc6', 'fc7', 'fc8'] + fc8
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    for name, layer in zip(names, layers, strict=True):
        layer.weight.data = to_torch(variables[f'vgg_16/{name}/weights'])
        layer.bias.data = torch.from_numpy(variables[f'vgg_16/{name}/biases'])
    for name, layer in zip(('x2_1', 'x2_2', 'x8'), network.upscores):
        layer.weight.data = to_torch(variables[f'vgg_16/fc8/t_conv_{name}'])


@needs_torch
def test_pytorch_gives_the_logits_and_the_loss_of_our_network():
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

    softmax = pytorch_fcn.predict(network, image[0].astype(np.uint8))
    assert softmax.dtype == np.float32 and softmax.shape == (50, 71, 21)


@needs_torch
def test_pytorch_starts_with_bilinear_kernels():
    from benchmarks import pytorch_fcn
    layer = pytorch_fcn.upsampling(8, 21)
    np.testing.assert_array_equal(layer.weight.detach().numpy().transpose(2, 3, 1, 0),
                                  utils.bilinear_upsample_weights(8, 21))


def test_plain_pydensecrf_has_the_parameters_of_refine(pairs):
    image, label = pairs[4]
    coarse = cv2.blur(np.eye(21, dtype=np.float32)[np.where(label == 255, 0, label)], (9, 9)) + 0.01
    probabilities = coarse / coarse.sum(-1, keepdims=True)
    theirs = refinement.plain_pydensecrf(image, probabilities)
    assert np.mean(crf.refine(image, probabilities) == theirs) > 0.999
    assert np.mean(theirs != probabilities.argmax(-1)) > 0.005  # it does change something


def test_a_constant_batch_is_drawn_once(record):
    sampling = batches.Sampling(record, 5, 2, 32, pad_rgb=(0, 0, 0), seed=0)
    repeated = ours.repeat_first(batches.training_batches)(sampling)
    next_batch = tf.data.make_one_shot_iterator(repeated).get_next()
    with tf.Session() as session:
        first, second = session.run(next_batch), session.run(next_batch)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[0].shape == (2, 32, 32, 3) and first[1].shape == (2, 32, 32)


def test_ports_are_free_and_differ():
    assert len(set(ours.find_ports(3))) == 3


# ------------------------------------------------------------------------------------------- all rows

TINY = rows.Plan(
    rounds=1, fc_channels=8, crop_size=32, steps=1, window=2, torch_steps=1, reading_batches=2, image_size=(40, 50),
    predicted=1, maps=2, crf_images=1, pool_images=2, map_steps=3, map_channels=8, map_crop=32,
    growth=((2, 32),), workers=(2,))


class EndOfTurns(Exception):
    """Ends a contender after its first round."""


class OneTurn(contend.Turns):
    """Gives a contender in this process a single turn."""

    def __init__(self):
        super().__init__(None, None)
        self.done = None

    def wait(self):
        if self.done:
            raise EndOfTurns

    def report(self, items, seconds, **extra):
        self.done = Round(items, max(seconds, 1e-6), extra, peak_bytes=10 ** 6)


def run_once(contender):
    """One Round of a contender in this process; in a thread, which has no default graph, as a process of its own."""
    module, function = contender.function.split('.')
    function = getattr(importlib.import_module(f'benchmarks.{module}'), function)
    turns = OneTurn()
    with ThreadPoolExecutor(1) as thread, contextlib.suppress(EndOfTurns):
        thread.submit(function, turns, **contender.settings).result()
    return turns.done


def run_here(arguments):
    """`python ARGUMENTS` in this process; what it is with -c alone does not run."""
    if arguments[0] == '-m':
        importlib.import_module(arguments[1]).main(arguments[2:])
    elif arguments[0] != '-c':
        runpy.run_path(os.path.join(measure.ROOT, arguments[0]), run_name='script')['main'](arguments[1:])


def run_program_here(turns, arguments, items, files=()):
    """In contend.run_program's place."""
    with turns.round(items):
        run_here(arguments)
    turns.done.extra['file_mb'] = sum(map(os.path.getsize, files)) / 1e6 or 1.0


@pytest.fixture
def in_this_process(monkeypatch):
    """Contenders run here, because importing TensorFlow takes seconds; a form of training runs once for all rows."""
    known = {}

    def take_turns(contenders, num_rounds, log_dir):
        found = {}
        for contender in contenders:
            if contender.function == 'ours.chief_with_worker':  # needs two processes
                contender = contender._replace(function='ours.training')
            if contender.function not in known or 'flags' not in contender.settings:
                known[contender.function] = run_once(contender)
            found[contender.name] = [known[contender.function]]
        return found

    monkeypatch.setattr(measure, 'take_turns', take_turns)
    monkeypatch.setattr(inputs.Inputs, 'run_once', lambda _, function, **settings: run_once(
        Contender(function, function, settings)))
    monkeypatch.setattr(contend, 'run_program', run_program_here)
    monkeypatch.setattr(inputs, 'run_script',
                        lambda script, **flags: run_here([script, *inputs.as_arguments(flags)]))


def test_every_row_runs(voc, trained, record, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr(inputs.Inputs, 'train_few_images', lambda shared: {'given': (str(trained), record)})
    program.measure_rows(list(rows.ROWS), inputs.find_data(voc, None), TINY, str(tmp_path / 'out'))
    text = (tmp_path / 'out' / 'benchmarks.md').read_text()
    measured = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('| ')]
    assert set(rows.ROWS) == set(measured) - {'row'}
    assert 'given softmax maps of the CRF rows: 5 images; highest probability' in text
    assert sorted(os.listdir(tmp_path / 'out')) == ['benchmarks.md', 'logs']


@pytest.mark.slow
def test_maps_are_decided_and_undecided(voc, tmp_path, in_this_process):
    shared = inputs.Inputs(inputs.find_data(voc, None), TINY, str(tmp_path), str(tmp_path))
    assert list(shared.maps) == ['decided', 'undecided']
    for folder in shared.maps.values():
        assert [image.shape for image, _ in refinement.load_maps(folder)] == [(60, 80, 3)] * 2


@pytest.mark.slow
def test_rows_in_processes_of_their_own(voc, tmp_path):
    """As `make bench` runs them."""
    program.measure_rows(['machines', 'grow_convert'], inputs.find_data(voc, None), TINY, str(tmp_path))
    text = (tmp_path / 'benchmarks.md').read_text()
    line = r'\| machines \| images/s, two processes \| [\d.]+ \| one process, all cores \| [\d.]+ \| [\d.]+x \| 1 \|'
    assert re.search(line, text) and '| grow_convert | images/s, --num_workers 2 |' in text


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(utils.UserError, match='--data_dir .*none: ImageSets/Segmentation is missing; name'):
        program.main(['--data_dir', str(tmp_path / 'none'), '--output_dir', str(tmp_path)])
    done = subprocess.run([sys.executable, '-m', 'benchmarks', '--rows', 'nothing'], cwd=measure.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('benchmarks: error: ') and done.stderr.count('\n') == 1


def test_a_row_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    def first(shared):
        """It fails."""
        raise utils.UserError('no opponent')

    def second(shared):
        """It does not."""
        return [Line('seconds', [5.0])]
    monkeypatch.setattr(rows, 'ROWS', {'first': first, 'second': second})
    data = inputs.Data(str(tmp_path), 'train', 'masks', 'VOC')
    (tmp_path / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('a\nb\n')
    with pytest.raises(utils.UserError, match='^1 of 2 rows failed: first: no opponent$'):
        program.measure_rows(['first', 'second'], data, TINY, str(tmp_path / 'out'))
    assert '| second | seconds | 5.00 |' in (tmp_path / 'out' / 'benchmarks.md').read_text()
