"""The drawn data set: VOC's layout, labels that follow the picture, and a seed that fixes every byte."""
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import utils
from datasets.classes import VOC
from tools import make_sample_dataset

SCRIPT = make_sample_dataset.__file__


def read_tree(folder):
    """Every file under `folder`: {relative path: bytes}."""
    tree = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, 'rb') as file:
                tree[os.path.relpath(path, folder)] = file.read()
    return tree


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """One run of the program: 3 pictures to train on, 20 to validate on."""
    folder = tmp_path_factory.mktemp('sample') / 'voc'
    make_sample_dataset.main(['--output_dir', str(folder), '--num_train', '3', '--num_val', '20'])
    return folder


@pytest.fixture(scope='module')
def pictures(sample):
    """{id: (image uint8 [H, W, 3], labels uint8 [H, W])} of the files of `sample`."""
    return {path.stem: (np.array(Image.open(path)),
                        np.array(Image.open(sample / 'SegmentationClass' / (path.stem + '.png'))))
            for path in sorted((sample / 'JPEGImages').iterdir())}


def test_layout_is_vocs(sample):
    train = [f'train_{i:06d}' for i in range(3)]
    val = [f'val_{i:06d}' for i in range(20)]
    lists = {name: (sample / 'ImageSets' / 'Segmentation' / name).read_text().split() for name in
             ('train.txt', 'val.txt')}
    assert lists == {'train.txt': train, 'val.txt': val}
    assert sorted(read_tree(sample)) == sorted(
        [f'JPEGImages/{name}.jpg' for name in train + val] + [f'SegmentationClass/{name}.png' for name in train + val]
        + [f'ImageSets/Segmentation/{name}' for name in lists])


def test_labels_are_a_palette_png_in_voc_colours(sample):
    picture = Image.open(sample / 'SegmentationClass' / 'val_000000.png')
    assert picture.mode == 'P'
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    assert palette[[0, 1, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]


def test_pictures_are_colour_and_of_various_sizes(pictures):
    for image, labels in pictures.values():
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape == (*labels.shape, 3)
        assert 120 <= min(labels.shape) <= 160 <= max(labels.shape) <= 200
        assert image.std() > 20
    sizes = {labels.shape for _, labels in pictures.values()}
    assert len(sizes) > 10
    assert any(h > w for h, w in sizes) and any(h < w for h, w in sizes)


def test_twenty_pictures_show_every_class(pictures):
    shown = set()
    for name, (_, labels) in pictures.items():
        assert set(np.unique(labels)) <= {*range(21), 255}
        if name.startswith('val'):
            shown |= {label for label in range(21) if (labels == label).sum() >= 100}
    assert shown == set(range(21))


def test_every_class_is_the_main_object_once_in_twenty():
    for split in ('train', 'val'):
        for first in (0, 20):
            classes = [make_sample_dataset.draw_classes(0, split, i) for i in range(first, first + 20)]
            assert sorted(c[0] for c in classes) == list(range(1, 21))
            assert {len(c) for c in classes} <= {1, 2, 3, 4}
    orders = {tuple(make_sample_dataset.draw_classes(seed, split, i)[0] for i in range(20))
              for seed in (0, 1) for split in ('train', 'val')}
    assert len(orders) == 4


def test_there_is_a_drawing_of_every_class():
    assert tuple(make_sample_dataset.OBJECTS) == VOC.names[1:]
    homes = {home for thing in make_sample_dataset.OBJECTS.values() for home in thing.homes}
    assert homes <= set(make_sample_dataset.SCENES)


def test_void_is_a_thin_border_between_different_labels(pictures):
    for _, labels in pictures.values():
        assert 0.01 < (labels == 255).mean() < 0.2
        for here, there in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            touching = (here != there) & (here != 255) & (there != 255)
            assert not touching.any()
        core = cv2.erode((labels == 255).astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0)
        assert core.mean() < 0.005  # nowhere but in the thinnest parts is the band 7 pixels wide


def test_label_instances_by_hand():
    instances = np.zeros((5, 8), np.uint8)
    instances[:, 3:6], instances[:, 6:] = 1, 2  # two objects of one class side by side
    expected = [0, 0, 255, 255, 7, 255, 255, 7]
    np.testing.assert_array_equal(make_sample_dataset.label_instances(instances, [7, 7]), [expected] * 5)


def test_labels_follow_the_picture(monkeypatch):
    """A red, a green and a blue chair on white ground: the colour on top says whose pixel it is."""
    chair = make_sample_dataset.OBJECTS['chair'].parts
    for name, hue in (('aeroplane', 0), ('bicycle', 120), ('bird', 240)):
        parts = [part._replace(paint=make_sample_dataset.Paint((hue, 100, 100))) for part in chair]
        thing = make_sample_dataset.Thing(['room'], False, parts)
        monkeypatch.setitem(make_sample_dataset.OBJECTS, name, thing)
    canvas = np.full((360, 480, 3), 255, np.float32)
    instances = make_sample_dataset.draw_objects(canvas, [1, 2, 3], (120, 160), np.random.default_rng(3))
    small = cv2.resize(canvas, (160, 120), interpolation=cv2.INTER_AREA)
    visible = np.where(np.ptp(small, axis=2) > 90, 1 + small.argmax(2), 0)
    assert set(np.unique(visible)) == {0, 1, 2, 3}
    assert (instances == visible).mean() > 0.99
    labels = make_sample_dataset.label_instances(instances, [1, 2, 3])
    np.testing.assert_array_equal(labels[labels < 255], visible[labels < 255])
    assert ((labels > 0) & (labels < 255)).sum() > 0.2 * (visible > 0).sum()  # thin as the legs are, a core is left


def test_seed_fixes_every_byte_and_more_pictures_change_none(sample, tmp_path):
    make_sample_dataset.main(['--output_dir', str(tmp_path / 'more'), '--num_train', '5', '--num_val', '1'])
    first, more = read_tree(sample), read_tree(tmp_path / 'more')
    shared = [path for path in more if path in first and not path.startswith('ImageSets')]
    assert len(shared) == 2 * (3 + 1)
    assert all(first[path] == more[path] for path in shared)
    make_sample_dataset.main(['--output_dir', str(tmp_path / 'other'), '--num_train', '3', '--num_val', '1',
                              '--seed', '1'])
    other = read_tree(tmp_path / 'other')
    assert all(first[path] != other[path] for path in shared)
    assert first['JPEGImages/train_000000.jpg'] != first['JPEGImages/val_000000.jpg']


def test_another_data_set_is_left_alone(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'JPEGImages' / '2007_000032.jpg').touch()
    with pytest.raises(utils.UserError, match='JPEGImages holds the images of another data set'):
        make_sample_dataset.main(['--output_dir', str(tmp_path)])
    assert read_tree(tmp_path) == {'JPEGImages/2007_000032.jpg': b''} and os.listdir(tmp_path) == ['JPEGImages']


def test_mistakes_take_one_line_from_any_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    ran = subprocess.run([sys.executable, SCRIPT, '--output_dir', 'file'], cwd=tmp_path, capture_output=True, text=True,
                         timeout=100)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith('make_sample_dataset.py: error: ')
    assert 'file' in ran.stderr and 'Traceback' not in ran.stderr


@pytest.mark.parametrize('flags', [['--num_train', '0'], ['--seed', '-1'], ['--hieght', '3'], []])
def test_bad_flags_are_refused(flags, tmp_path, capsys):
    folder = ['--output_dir', str(tmp_path)] if flags else []
    with pytest.raises(SystemExit) as stop:
        make_sample_dataset.main([*folder, *flags])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
