"""The benchmarks' statistics by hand, their opponents' claims, the page line by line, and every row end to end."""
import importlib
import importlib.util
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

import train
import utils
from benchmarks import earlier_suite, measure, rows, run, tables
from benchmarks.measure import Contender, Round
from benchmarks.tables import Line, Table, Target
from datasets import batches as input_pipeline

needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None,
                                 reason='PyTorch is not installed: pip install torch==2.13.0')

# ------------------------------------------------------------------------------------------- statistics


def test_statistics_by_hand():
    assert measure.summarise([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert measure.summarise([4.0, 1.0, 2.0, 8.0]) == (3.0, 1.0, 8.0)
    # The ratio is that of each round: 6 / 2, 4 / 4, 10 / 5; the medians' own would be 6 / 4.
    assert measure.ratios([6.0, 4.0, 10.0], [2.0, 4.0, 5.0]) == [3.0, 1.0, 2.0]
    assert measure.summarise(measure.ratios([6.0, 4.0, 10.0], [2.0, 4.0, 5.0])).median == 2.0
    with pytest.raises(ValueError, match='2 rounds against 1'):
        measure.ratios([1.0, 2.0], [1.0])


def test_rates_and_peaks_are_per_second_and_in_megabytes():
    rounds = [Round(items=8, seconds=2.0, peak_bytes=3_500_000), Round(items=8, seconds=4.0, peak_bytes=4_000_000)]
    assert measure.rates(rounds) == [4.0, 2.0]
    assert measure.peaks(rounds) == [3.5, 4.0]


def test_equal_pixels_are_counted_over_all_images():
    ours = [Round(1, 1.0, extra=[np.array([[0, 1], [2, 3]])]), Round(1, 1.0, extra=[np.array([[5, 5, 5, 5]])])]
    theirs = [Round(1, 1.0, extra=[np.array([[0, 1], [2, 9]])]), Round(1, 1.0, extra=[np.array([[5, 5, 5, 5]])])]
    assert rows.share_equal(ours, theirs) == 7 / 8


# ------------------------------------------------------------------------------------------- the page


def test_lines_of_the_page():
    lines = [Line('convert', 'images/s', [400.0, 420.0, 380.0], 'earlier suite', [50.0, 60.0, 40.0], Target('>=', 6)),
             Line('convert', 'peak memory, MB', [66.0], 'earlier suite', [60.0], Target('<=', 0.5)),
             Line('train_4', 'images/s', [1.234, 1.3], 'PyTorch eager', 'not installed', Target('>=', 1.25)),
             Line('validation', 'seconds a checkpoint', [2.5, 0.01234, 12.36]),
             Line('crf', '% of pixels equal', [99.99876], 'pydensecrf, 21 labels', target=Target('>=', 99.99))]
    assert tables.format_lines(lines) == [
        "| row | measured | ours | opponent | the opponent's | ours / theirs | rounds | target | met |",
        '|---|---|---|---|---|---|---|---|---|',
        '| convert | images/s | 400 (380..420) | earlier suite | 50.0 (40.0..60.0) | 8.00x (7.00x..9.50x) | 3 | >= 6x '
        '| yes |',
        '| convert | peak memory, MB | 66.0 | earlier suite | 60.0 | 1.10x | 1 | <= 0.5x | no |',
        '| train_4 | images/s | 1.27 (1.23..1.30) | PyTorch eager | not installed | - | 2 | >= 1.25x | ? |',
        '| validation | seconds a checkpoint | 2.50 (0.0123..12.4) | - | - | - | 3 | - | - |',
        '| crf | % of pixels equal | 99.9988% | pydensecrf, 21 labels | - | - | 1 | >= 99.99% | yes |']


def test_a_page_has_tables_plots_and_remarks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'read_remarks', lambda: ['## Remarks', '', 'By hand.', ''])
    table = Table('Training against crop size', 'images/s', ['crop size', 'images/s'], [(128, 2.5), (1024, 0.05)],
                  'a.png')
    page = tables.write_page(str(tmp_path), ['- machine: one'], [], [table], {'grow_train': 'so.'})
    with open(page, encoding='utf-8') as file:
        text = file.read()
    assert text.startswith('# Benchmarks\n\n- machine: one\n\n')
    assert text.endswith(
        '## How cost grows\n\n### Training against crop size\n\nimages/s:\n\n| crop size | images/s |\n|---|---|\n'
        '| 128 | 2.50 |\n| 1,024 | 0.05 |\n\n![Training against crop size](a.png)\n\n## Remarks\n\nBy hand.\n\n'
        '## What the rows measure\n\n- **grow_train**: so.\n')
    with Image.open(tmp_path / 'a.png') as plot:
        assert plot.width > 300


# ------------------------------------------------------------------------------------------- contenders


def test_turns_alternate_after_a_warm_up_and_a_failure_is_one_line(tmp_path):
    contenders = [Contender(name, 'measure', 'whole_process', {'arguments': ['-c', code], 'items': 3})
                  for name, code in (('one', 'print(1)'), ('two', 'bytearray(100_000_000)'))]
    said = []
    found = measure.take_turns(contenders, 2, str(tmp_path), said.append)
    assert [line.split(':')[0].strip() for line in said] == [
        'warm-up, one', 'warm-up, two', 'round 1/2, one', 'round 1/2, two', 'round 2/2, one', 'round 2/2, two']
    assert [len(rounds) for rounds in found.values()] == [2, 2]
    small, large = (max(measure.peaks(rounds)) for rounds in found.values())
    assert 5 < small < 50 and 95 < large - small < 110
    assert (tmp_path / 'one.log').read_text() == '1\n' * 3

    found = measure.take_turns(contenders[:1], 5, str(tmp_path), said.append, deadline=0)
    assert len(found['one']) == 2 and said[-1] == '  2 rounds are enough: the time of this row is over'
    found = measure.take_turns(contenders[:1], 1, str(tmp_path), said.append, warm_up=False)
    assert len(found['one']) == 1 and said[-2].startswith('  2 rounds')

    broken = Contender('three', 'measure', 'whole_process', {'arguments': ['-c', 'raise SystemExit(3)'], 'items': 1})
    with pytest.raises(utils.UserError, match=r'^three: UserError: python .* ended with exit code 3; see .*three.log'):
        measure.take_turns([broken], 1, str(tmp_path), said.append)


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
    _, ids = run.Data(voc).ids()
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
    batch = tf.data.make_one_shot_iterator(earlier_suite.training_batches(record, 8, 48)).get_next()
    with tf.Session() as session:
        images, labels = session.run(batch)
    assert images.shape == (8, 48, 48, 3) and labels.shape == (8, 48, 48)
    brightness = np.where(labels == 255, 255, labels * 12)
    assert np.mean(np.abs(images[..., 0] - brightness) < 30) > 0.9


@needs_torch
def test_pytorch_gives_the_logits_and_the_loss_of_our_network():
    import torch

    from benchmarks import pytorch_fcn
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (2, 50, 71, 3)).astype(np.float32)
    labels = rng.choice([*range(21), 255], (2, 50, 71)).astype(np.int32)
    logits = train.fcn(tf.constant(image), train.Network(fc_channels=16))
    loss, _ = train.segmentation_loss(logits, tf.constant(labels))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run([tf.assign(variable, rng.normal(0, 0.03, variable.shape.as_list()))  # zeros would hide mistakes
                     for variable in tf.trainable_variables() if re.search('biases|fc8', variable.op.name)])
        values, expected, expected_loss = session.run(
            [{v.op.name: v.value() for v in tf.trainable_variables()}, logits, loss])
    network = pytorch_fcn.FCN8s(fc_channels=16).eval()
    assert sum(p.numel() for p in network.parameters()) == sum(value.size for value in values.values())
    pytorch_fcn.load_weights(network, values)
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
    from benchmarks import refinement
    image, label = pairs[4]
    coarse = cv2.blur(np.eye(21, dtype=np.float32)[np.where(label == 255, 0, label)], (9, 9)) + 0.01
    probabilities = coarse / coarse.sum(-1, keepdims=True)
    ours, theirs = (function(image, probabilities) for function in refinement.FUNCTIONS.values())
    assert np.mean(ours == theirs) > 0.999
    assert np.mean(theirs != probabilities.argmax(-1)) > 0.005  # it does change something


def test_a_constant_batch_is_drawn_once(record):
    from benchmarks import training
    batches = training.one_batch(input_pipeline.training_batches)(record, 5, 2, 32, pad_rgb=(0, 0, 0), seed=0)
    next_batch = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        first, second = session.run(next_batch), session.run(next_batch)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[0].shape == (2, 32, 32, 3) and first[1].shape == (2, 32, 32)


# ------------------------------------------------------------------------------------------- all rows

TINY = rows.Plan(
    rounds=1, fc_channels=8, crop_size=32, steps=1, window=2, torch_steps=1, reading_batches=2, image_size=(40, 50),
    predicted=1, maps=2, crf_images=1, pool_images=2, model_steps=3, model_channels=8, model_crop=32, run_steps=2,
    growth_steps=1, growth_batches=(2,), growth_batch_crop=32, growth_crops=(64,), crf_heights=(30, 60),
    crf_labels=(2, 21), crf_repeats=1, converter_workers=(1, 2))


class InThisProcess:
    """In measure.Worker's place: TensorFlow need not be imported for each contender anew."""

    def __init__(self, contender, log_path):
        module = importlib.import_module(f'benchmarks.{contender.module}')
        self.rounds = getattr(module, contender.function)(**contender.settings)
        self.close = self.rounds.close
        self.runs_once = contender.function in ('whole_process', 'whole_run')
        self.last = None

    def run_round(self):
        if not (self.runs_once and self.last):  # no second time
            self.last = next(self.rounds)
        return self.last._replace(peak_bytes=self.last.peak_bytes or measure.peak_memory())


def run_script_here(script, *arguments, quiet=False):
    runpy.run_path(os.path.join(measure.ROOT, script), run_name='script')['main']([str(each) for each in arguments])


def test_every_row_runs(voc, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, 'Worker', InThisProcess)
    monkeypatch.setattr(run, 'run_script', run_script_here)
    args = run.parse_args(['--data_dir', voc, '--output_dir', str(tmp_path / 'out'), '--rows', *rows.ROWS])
    args.rows = [*args.rows, 'so that the page is not that of results']
    page = run.measure_all(args, TINY)
    with open(page, encoding='utf-8') as file:
        text = file.read()
    measured = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('| ')]
    assert {name for name in rows.ROWS if not name.startswith('grow')} <= set(measured)
    assert text.count('![') == text.count('](bench_') == 5
    assert 'undecided softmax maps of the CRF rows: 2 images, predicted by' in text
    assert os.path.dirname(page) == str(tmp_path / 'out')
    left = {name.split('_')[0] for name in os.listdir(tmp_path / 'out')}
    assert left == {'logs', 'model', 'bench', 'benchmarks.md'}


def test_mistakes_are_one_line(tmp_path):
    def run_program(*flags):
        return subprocess.run([sys.executable, '-m', 'benchmarks', *flags], cwd=measure.ROOT, capture_output=True,
                              text=True)
    done = run_program('--data_dir', str(tmp_path / 'none'), '--output_dir', str(tmp_path))
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith(f'benchmarks: error: --data_dir {tmp_path / "none"} is not a folder')
    done = run_program('--rows', 'nothing')
    assert done.returncode == 2 and done.stderr.startswith('benchmarks: error: ') and done.stderr.count('\n') == 1
    done = run_program('--checkpoint_path', str(tmp_path / 'none'))
    assert done.returncode == 1 and done.stderr.startswith('benchmarks: error: --checkpoint_path')
