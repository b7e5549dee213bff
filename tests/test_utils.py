import errno
import os
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
from conftest import full_disk, limit_file_size
from PIL import Image

import utils


def test_bilinear_kernel_of_factor_2_is_the_outer_product_of_1_3_3_1():
    weights = utils.bilinear_upsample_weights(2, 3)
    assert weights.shape == (4, 4, 3, 3) and weights.dtype == np.float32
    by_hand = np.array([[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]) / 16
    for i in range(3):
        for j in range(3):
            np.testing.assert_allclose(weights[:, :, i, j], by_hand if i == j else 0)


def test_bilinear_kernel_of_factor_3_has_odd_size():
    np.testing.assert_allclose(utils.bilinear_upsample_weights(3, 1)[2, :, 0, 0], np.array([1, 2, 3, 2, 1]) / 3)


def test_bilinear_kernel_of_factor_8():
    weights = utils.bilinear_upsample_weights(8, 21)
    assert weights.shape == (16, 16, 21, 21)
    np.testing.assert_allclose(weights[0, 0, 5, 5], (1 / 16) ** 2)  # the corner lies 7.5 of 8 pixels off the centre
    np.testing.assert_allclose(weights.sum(axis=(0, 1)), 64 * np.eye(21))


def test_voc_palette_is_the_published_one():
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128),
                 6: (0, 128, 128), 7: (128, 128, 128), 8: (64, 0, 0), 9: (192, 0, 0), 10: (64, 128, 0),
                 11: (192, 128, 0), 12: (64, 0, 128), 13: (192, 0, 128), 14: (64, 128, 128), 15: (192, 128, 128),
                 16: (0, 64, 0), 17: (128, 64, 0), 18: (0, 192, 0), 19: (128, 192, 0), 20: (0, 64, 128),
                 255: (224, 224, 192)}
    palette = utils.voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    for index, colour in published.items():
        assert tuple(palette[index]) == colour
    assert len(np.unique(palette, axis=0)) == 256


def test_error_map():
    image = np.full((1, 3, 3), 100, np.uint8)
    errors = utils.error_map(image, np.array([[1, 1, 255]], np.uint8), np.array([[1, 0, 0]], np.uint8), 21)
    np.testing.assert_array_equal(errors, [[[208, 208, 208],  # 100 * 0.3 + 255 * 0.7 = 208.5, to even
                                            [220, 30, 30], [224, 224, 192]]])


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.json'
    utils.save_json(str(path), {'name': '图', 'none': None})
    before = path.read_text(encoding='utf-8')
    assert '图' in before and before.endswith('}\n')
    with pytest.raises(ValueError):
        utils.save_json(str(path), {'value': float('nan')})
    assert os.listdir(tmp_path) == ['a.json'] and path.read_text(encoding='utf-8') == before


PALETTE = np.arange(768).reshape(256, 3).astype(np.uint8)  # class 1 has (3, 4, 5), and so on


@pytest.mark.parametrize('has_background, first', [(True, (100, 100, 100)), (False, (55, 60, 65))])
def test_overlay_blends_objects_and_leaves_background(has_background, first):
    image = np.full((1, 2, 3), 100, np.uint8)
    palette = np.array([[10, 20, 30], [128, 0, 0]], np.uint8)
    blended = utils.overlay(image, np.array([[0, 1]], np.uint8), palette, has_background, opacity=0.5)
    np.testing.assert_array_equal(blended, [[first, [114, 50, 50]]])  # (100 + (128, 0, 0)) / 2


@pytest.mark.parametrize('palette, colour_15', [(utils.voc_palette(), [192, 128, 128]), (PALETTE, [45, 46, 47])])
def test_save_labels_is_lossless_and_in_the_palettes_colours(tmp_path, palette, colour_15):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    utils.save_labels(str(tmp_path / 'labels.png'), labels, palette)
    picture = Image.open(tmp_path / 'labels.png')
    assert picture.mode == 'P' and picture.getpalette()[3 * 15:3 * 16] == colour_15
    np.testing.assert_array_equal(np.array(picture), labels)
    assert os.listdir(tmp_path) == ['labels.png']


def test_control_characters_are_unicodes():
    found = {chr(code) for code in range(0x110000) if utils.is_control(chr(code))}
    assert found == {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == 'Cc'}


@pytest.mark.parametrize('name', ['picture.jpg', 'picture.png'])
def test_save_image_that_fails_leaves_the_old_picture_and_nothing_else(tmp_path, name):
    path = tmp_path / name
    utils.save_image(str(path), np.zeros((4, 4, 3), np.uint8))
    before = path.read_bytes()
    with limit_file_size(1000), pytest.raises(OSError, match='File too large') as raised:
        utils.save_image(str(path), np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8))
    assert raised.value.filename == str(path)
    assert os.listdir(tmp_path) == [name] and path.read_bytes() == before


@pytest.mark.parametrize('argv, expected', [
    (['--step', '3'], 'unrecognized arguments: --step 3'),  # not taken as an abbreviation of --steps
    (['--steps', '0'], 'argument --steps: 0 is not a number from 1 up'),
    (['--steps', '1.5'], "argument --steps: '1.5' is not a whole number"),
    (['--steps', '99999999999'], 'argument --steps: 99999999999 is too large'),
    (['--rate', 'nan'], 'argument --rate: nan is not a number from 0 up'),
    (['--rate', 'fast'], "argument --rate: 'fast' is not a number"),
])
def test_bad_flags_are_one_line(argv, expected, capsys):
    parser = utils.ArgumentParser('A program.')
    parser.add_argument('--steps', type=utils.positive_int, default=1)
    parser.add_argument('--rate', type=utils.non_negative_float, default=1.0)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and expected in error and error.count('\n') == 1


@pytest.mark.parametrize('body, code, line', [
    ('return None', 0, ''),
    ('return 3', 3, ''),
    ('raise utils.UserError("a.png: no such file")', 1, '-c: error: a.png: no such file\n'),
    ('open("/no/such/file")', 1, '-c: error: /no/such/file: No such file or directory\n'),
    ('raise KeyboardInterrupt', 130, ''),
    ('try:\n        signal.raise_signal(2)\n    finally:\n        print("removed", file=utils.sys.stderr)', 130,
     'removed\n'),
])
def test_run_program_ends_with_one_line_and_a_code(body, code, line):
    program = (f'import signal, utils\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n'  # as import_tensorflow does
               f'def main():\n    {body}\nutils.run_program(main)')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          cwd=os.path.dirname(utils.__file__))
    assert (done.returncode, done.stderr) == (code, line)


@full_disk
@pytest.mark.parametrize('name, write', [
    ('a.jpg', lambda path: utils.save_image(path, np.random.RandomState(0).randint(0, 256, (300, 300, 3), np.uint8))),
    ('a.png', lambda path: utils.save_labels(path, np.random.RandomState(0).randint(0, 256, (300, 300), np.uint8),
                                             utils.voc_palette())),
    ('a.html', lambda path: utils.save_text(path, 'x' * 100000))])
def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path, limit, number, name, write):
    with limit(tmp_path, 16384):
        (tmp_path / name).write_text('before')
        with pytest.raises(OSError) as raised:
            write(str(tmp_path / name))
        assert raised.value.errno == number and raised.value.filename == str(tmp_path / name)
        assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == 'before'


@pytest.mark.parametrize('number, message', [
    (errno.ENOSPC, 'a/b: No space left on device; free some space and start again'),
    (errno.EACCES, 'a/b: Permission denied; make it accessible, or name another')])
def test_what_the_system_refuses_ends_a_program_with_one_line(monkeypatch, number, message):
    def fail():
        raise OSError(number, os.strerror(number), 'a/b')
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    with pytest.raises(SystemExit, match=f'^train.py: error: {message}$'):
        utils.run_program(fail)


def test_signals_raise_at_once_or_when_it_suits():
    with utils.StopSignals() as signals:
        with pytest.raises(utils.Stopped, match='stopped by SIGTERM') as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert stopped.value.number == 15
    with utils.StopSignals() as signals:
        signals.hold()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(utils.Stopped, match='stopped by SIGINT'):
            signals.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
