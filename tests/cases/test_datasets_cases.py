"""What users' data sets hold beside the plain case: rows D1 to D14, one test each, and variants."""
import io
import os
import random
import re
import shutil
import struct
import threading
import zlib

import numpy as np
import psutil
import pytest
import tensorflow.compat.v1 as tf
from conftest import with_orientation
from PIL import Image

import convert_fcn_dataset as convert
import train
import utils
from datasets import batches, classes, photos, pictures, records, voc
from inference.weights import find_checkpoint, find_common_classes
from training.data import read_data
from utils import UserError

PALETTE = utils.voc_palette()
RECORDS = ('fcn_train.record', 'fcn_val.record')
VIEWED = {1: np.array, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
          6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}  # by EXIF orientation


def draw(height, width, seed, values=(0, 1, 15)):
    """An image of flat 16-pixel blocks, uint8 [H, W, 3], and a mask of the same blocks, uint8 [H, W]."""
    chance = np.random.default_rng(seed)
    blocks = chance.permutation(np.resize(values, (height // 16 + 1) * (width // 16 + 1)))
    mask = np.kron(blocks.reshape(height // 16 + 1, -1), np.ones((16, 16), int))[:height, :width].astype(np.uint8)
    return PALETTE[mask] // 2 + 60, mask


def save_mask(path, mask, palette=PALETTE):
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())
    picture.save(path)


@pytest.fixture
def folder(tmp_path):
    """A VOC folder: train a, b, c and val d; 64 wide, 48 high."""
    root = tmp_path / 'VOC'
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / name).mkdir(parents=True)
    for seed, image_id in enumerate('abcd'):
        image, mask = draw(48, 64, seed)
        Image.fromarray(image).save(root / 'JPEGImages' / f'{image_id}.jpg', quality=95)
        save_mask(root / 'SegmentationClass' / f'{image_id}.png', mask)
    write_list(root, 'train', 'abc')
    write_list(root, 'val', 'd')
    return root


def write_list(root, name, lines):
    (root / 'ImageSets' / 'Segmentation' / f'{name}.txt').write_text('\n'.join(lines) + '\n')


def write_classes(root, text, name='names.txt'):
    path = root.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def image_of(root, image_id, ending='.jpg'):
    return root / 'JPEGImages' / (image_id + ending)


def mask_of(root, image_id, ending='.png'):
    return root / 'SegmentationClass' / (image_id + ending)


def run(root, *flags):
    """Converts; returns the two records as dicts of id to (image, label, bytes of the image)."""
    out = root.parent / 'out'
    convert.main(['--data_dir', str(root), '--output_dir', str(out), *flags])
    return [{name: pair for example in tf.io.tf_record_iterator(str(out / record)) for name, pair in [decode(example)]}
            for record in RECORDS]


def decode(serialised):
    features = tf.train.Example.FromString(serialised).features.feature
    name, image, label = (features[f'image/{name}'].bytes_list.value[0] for name in ('filename', 'encoded', 'label'))
    size = tuple(features[f'image/{name}'].int64_list.value[0] for name in ('height', 'width'))
    pixels, labels = (np.asarray(Image.open(io.BytesIO(data))) for data in (image, label))
    assert pixels.shape[:2] == labels.shape == size
    return name.decode(), (pixels, labels, image)


def fails(root, *flags):
    """The message with which a conversion ends; one line, and no record is left."""
    with pytest.raises(UserError) as caught:
        run(root, *flags)
    assert '\n' not in str(caught.value) and not list((root.parent / 'out').glob('*'))
    return str(caught.value)


# ------------------------------------------------------------------------------------------- D1: orientation


def save_stored(path, pixels, orientation, **options):
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=with_orientation(orientation), **options)


@pytest.mark.parametrize('size', [(48, 64), (48, 48)])
@pytest.mark.parametrize('ending', ['.jpg', '.png'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_d1_image_and_mask_are_what_a_viewer_shows(folder, capfd, orientation, ending, size):
    stored, _ = draw(*size, seed=9)
    image_of(folder, 'b').unlink()
    path = image_of(folder, 'b', ending)
    save_stored(path, stored, orientation, **({'quality': 95, 'subsampling': 0} if ending == '.jpg' else {}))
    seen, mask = VIEWED[orientation](stored), VIEWED[orientation](draw(*size, seed=9)[1])
    save_mask(mask_of(folder, 'b'), np.ascontiguousarray(mask))
    image, label, data = run(folder)[0]['b']
    np.testing.assert_array_equal(label, mask)
    assert np.abs(image.astype(int) - seen).max() <= (12 if ending == '.jpg' else 0)
    assert np.abs(photos.read_photo(str(path)).astype(int) - image).max() <= (6 if ending == '.jpg' else 0)
    lines = [line for line in capfd.readouterr().err.splitlines() if 'turned' in line]
    assert (data == path.read_bytes()) == (orientation == 1) == (lines == [])
    if lines:
        assert lines == [f'note: turned image: {path}: is turned as viewers show it, by its EXIF orientation '
                         f'{orientation}, and encoded anew']


def test_d1_the_count_of_turned_images_is_said_once(folder, capfd):
    for image_id in 'abcd':
        save_stored(image_of(folder, image_id), draw(48, 64, 0)[0], 3)
    run(folder)
    assert [line for line in capfd.readouterr().err.splitlines() if 'turned image' in line][1:] == [
        'note: turned image: 4 in all; --check --check_json FILE lists them']


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_d1_an_image_whose_mask_has_the_stored_size_stays_as_stored(folder, capfd, orientation):
    stored, mask = draw(48, 64, 5)
    save_stored(image_of(folder, 'b'), stored, orientation)
    save_mask(mask_of(folder, 'b'), mask)
    _, label, data = run(folder)[0]['b']
    np.testing.assert_array_equal(label, mask)
    assert data == image_of(folder, 'b').read_bytes()
    assert (f'b.jpg: is used as it is stored, because its mask has that size; viewers and predict.py turn it by its '
            f'EXIF orientation {orientation}') in capfd.readouterr().err


def test_d1_a_mask_is_turned_as_viewers_show_it(folder):
    stored, mask = draw(48, 64, 5)
    for path, pixels in ((image_of(folder, 'b'), stored), (mask_of(folder, 'b'), mask)):
        save_stored(path, pixels, 6)
    np.testing.assert_array_equal(run(folder)[0]['b'][1], np.rot90(mask, -1))


@pytest.mark.parametrize('scale', ['0.7', '0.75'])
def test_d1_a_turned_image_is_scaled_upright(folder, scale):
    stored, mask = draw(48, 64, 5)
    save_stored(image_of(folder, 'b'), stored, 6, quality=95)
    save_mask(mask_of(folder, 'b'), np.ascontiguousarray(np.rot90(mask, -1)))
    image, label, _ = run(folder, '--scale', scale)[0]['b']
    assert label.shape == (round(64 * float(scale)), round(48 * float(scale)))
    inside = np.abs(image.astype(int) - (PALETTE[label] // 2 + 60)).max(axis=2) < 16
    assert inside.mean() > 0.8  # all but the blocks' edges


def test_d1_a_size_that_fits_neither_way_is_told_with_the_reason(folder, capfd):
    save_stored(image_of(folder, 'b'), draw(40, 56, 5)[0], 8)
    fails(folder)
    assert 'b.png: is 64 x 48 pixels, its image 40 x 56, turned by its EXIF orientation 8' in capfd.readouterr().err


@pytest.mark.parametrize('exif', [b'Exif\0\0' + b'\xff' * 40,
                                  b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0hello',
                                  b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0'])
def test_d1_damaged_exif_and_unknown_orientations_change_nothing(folder, exif):
    image_of(folder, 'b').unlink()
    Image.fromarray(draw(48, 64, 1)[0]).save(image_of(folder, 'b', '.png'), exif=exif)
    assert run(folder)[0]['b'][2] == image_of(folder, 'b', '.png').read_bytes()
    np.testing.assert_array_equal(photos.read_photo(str(image_of(folder, 'b', '.png'))), draw(48, 64, 1)[0])


def test_d1_check_notes_what_is_turned_and_compares_what_is_seen(folder, capfd):
    image_of(folder, 'b').unlink()
    pixels = draw(48, 64, 1)[0]
    save_stored(image_of(folder, 'b', '.png'), np.rot90(pixels, 2), 3)
    Image.fromarray(pixels).save(image_of(folder, 'c', '.png'))
    image_of(folder, 'c').unlink()
    convert.main(['--data_dir', str(folder), '--check'])
    out = capfd.readouterr().out
    assert 'note: turned image: ' in out and 'c.png (train.txt) are the same image' in out


# ------------------------------------------------------------------------------------------- D2: at once


def test_d2_two_conversions_at_once_leave_complete_records(folder, monkeypatch):
    monkeypatch.setattr(os, 'getpid', lambda: 7)  # as in two containers
    failed = []

    def convert_once():
        try:
            convert.main(['--data_dir', str(folder), '--output_dir', str(folder.parent / 'out'), '--num_workers', '1'])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=convert_once) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    out = folder.parent / 'out'
    assert not failed and sorted(os.listdir(out)) == sorted([*RECORDS, *(name + '.json' for name in RECORDS)])
    assert [records.count_examples(str(out / name)) for name in RECORDS] == [3, 1]


def test_d2_each_writer_of_a_file_has_a_name_of_its_own(tmp_path):
    path = str(tmp_path / 'a')
    with utils.whole_file(path) as first, utils.whole_file(path) as second:
        assert first != second
        for partial, text in ((first, 'one'), (second, 'two')):
            with open(partial, 'w') as file:
                file.write(text)
    assert (tmp_path / 'a').read_text() == 'one' and os.listdir(tmp_path) == ['a']


# ------------------------------------------------------------------------------------------- D3: one class


@pytest.mark.parametrize('text, values, held', [
    ('other\nroad', (0, 255), 'other (0) and void (255)'), (None, (0, 255), 'background (0) and void (255)'),
    (None, (0,), 'background (0) and void'), (None, (15,), 'person (15) and void'), (None, (255,), 'only void (255)')])
def test_d3_masks_of_one_class_are_refused(folder, capfd, text, values, held):
    for image_id in 'abcd':
        Image.fromarray(draw(48, 64, 0, values)[1]).save(mask_of(folder, image_id))
    flags = ['--classes', write_classes(folder, text)] if text else []
    message = fails(folder, *flags)
    assert 'train.txt: the masks hold only' in message and held in message
    assert 'they must hold the values of at least two classes: for two, 0 and 1 instead of 0 and 255' in message
    with pytest.raises(UserError, match='fault'):
        convert.main(['--data_dir', str(folder), '--check', *flags])
    assert 'fault: nothing to learn: train.txt: the masks hold only' in capfd.readouterr().out


def test_d3_void_alone_in_val_is_refused(folder):
    save_mask(mask_of(folder, 'd'), np.full((48, 64), 255, np.uint8))
    assert 'val.txt: the masks hold only void (255)' in fails(folder)


def test_d3_training_on_one_class_is_refused_at_the_start(folder, tmp_path):
    run(folder)
    record = str(folder.parent / 'out' / 'fcn_train.record')
    pixels = np.zeros(256, int)
    pixels[[0, 255]] = 5, 6
    classes.save_side_file(classes.side_file(record), classes.VOC, 3, pixels)
    with pytest.raises(UserError, match=r'fcn_train.record: the masks hold only background \(0\) and void') as caught:
        train.main(['--dataset_train', record, '--dataset_val', str(folder.parent / 'out' / 'fcn_val.record'),
                    '--output_dir', str(tmp_path / 'run'), '--fc_channels', '8', '--max_steps', '1'])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['road', 'road\nvoid', '# one\nroad #102030', '__ignore__\n_background_',
                                  'name,r,g,b\nroad,1,2,3\nvoid,0,0,0'])
def test_d3_a_file_of_one_class_is_refused(folder, text):
    message = fails(folder, '--classes', write_classes(folder, text))
    assert 'holds 1 classes beside void; give 2 to 254' in message


# ------------------------------------------------------------------------------------------- D4: files of classes

CVAT = '# label:color_rgb:parts:actions\nbackground:0,0,0::\nperson:192,128,128:head,hand:walking\ncat:128,0,0::\n'


@pytest.mark.parametrize('text, names, colours', [
    (CVAT, ('background', 'person', 'cat'), [(0, 0, 0), (192, 128, 128), (128, 0, 0)]),
    ('__ignore__\n_background_\ncat\ndog\n', ('background', 'cat', 'dog'), [(0, 0, 0), (128, 0, 0), (0, 128, 0)]),
    ('Pixel Value, Class\n0, background\n1, traffic light\n', ('background', 'traffic light'), None),
    ('Pixel Value, Class\r\n1, tree\r\n0, sky\r\n', ('sky', 'tree'), None),
    ('name,r,g,b\nsky,1,2,3\ntree,4,5,6', ('sky', 'tree'), [(1, 2, 3), (4, 5, 6)]),
    ('sky,1,2,3\ntree,4,5,6', ('sky', 'tree'), [(1, 2, 3), (4, 5, 6)]),
    ('name;r;g;b\n"sky";1;2;3\n"tree";4;5;6', ('sky', 'tree'), [(1, 2, 3), (4, 5, 6)]),
    ('id,name,r,g,b\n0,sky,1,2,3\n1,tree,4,5,6', ('sky', 'tree'), [(1, 2, 3), (4, 5, 6)]),
    ('64 128 64\tAnimal\n192 0 128\tArchway\n', ('Animal', 'Archway'), [(64, 128, 64), (192, 0, 128)]),
    ('0 sky\n1 tree\n2 road', ('sky', 'tree', 'road'), None),
    ('names:\n  0: sky\n  1: tree\n', ('sky', 'tree'), None),
    ('# mine\nsky\n\ntree # the green ones\nC# code #102030', ('sky', 'tree', 'C# code'), None),
    ('\ufeffsky\r\ntree\r\n', ('sky', 'tree'), None),
    ('\ufeff# label:color_rgb:parts:actions\r\nsky:1,2,3::\r\ntree:4,5,6::\r\n', ('sky', 'tree'), None),
    ('Background\nroad', ('background', 'road'), None), ('图\n路 #010203', ('图', '路'), None)])
def test_d4_files_of_classes_are_read(folder, text, names, colours):
    class_set = classes.read_classes(write_classes(folder, text))
    assert class_set.names == names
    assert colours is None or class_set.colours == tuple(colours)


@pytest.mark.parametrize('text', [
    '["sky", "tree"]', "['sky', 'tree']", '[\n  "sky",\n  "tree"\n]', '{"sky": 0, "tree": 1}', '{\n  "sky": 0\n}',
    '- sky\n- tree', 'nc: 2\nnames: [sky, tree]', 'names:\n- sky\n- tree', '[classes]\nsky=0\ntree=1',
    '<label>sky</label>',
    'sky,tree', 'sky\ttree', 'floor, flooring\nwall', '0 sky\n2 tree', 'name,r,g,b\nsky,1,2,300\ntree,1,2,3',
    '0\n1,sky',
    'filename, cat, dog\na.jpg, 1, 0'])
def test_d4_what_is_no_list_of_names_is_refused_with_the_form(folder, text):
    message = fails(folder, '--classes', path := write_classes(folder, text))
    assert message.startswith(f'--classes {path}: ') and 'give' in message


def test_d4_masks_of_cvat_are_read_by_its_colours(folder):
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2]] = (192, 128, 128), (128, 0, 0)
    expected = {}
    for seed, image_id in enumerate('abcd'):
        expected[image_id] = draw(48, 64, seed, (0, 1, 2))[1]
        Image.fromarray(colours[expected[image_id]]).save(mask_of(folder, image_id))
    found = run(folder, '--classes', write_classes(folder, CVAT, 'labelmap.txt'))[0]
    for image_id in 'abc':
        np.testing.assert_array_equal(found[image_id][1], expected[image_id])


def test_d4_masks_of_labelme_are_read_by_its_values(folder):
    """labelme2voc.py gives __ignore__ the value -1, which is stored as 255, and _background_ 0."""
    for image_id in 'abcd':
        save_mask(mask_of(folder, image_id), draw(48, 64, 3, (0, 1, 2, 255))[1])
    text = '__ignore__\n_background_\ncat\ndog\n'
    np.testing.assert_array_equal(run(folder, '--classes', write_classes(folder, text))[0]['a'][1],
                                  draw(48, 64, 3, (0, 1, 2, 255))[1])


@pytest.mark.parametrize('name', ['labelmap.txt', 'labels.txt', 'classes.txt', 'class_names.txt'])
def test_d4_a_file_of_classes_in_the_data_is_pointed_out(folder, capfd, name):
    (folder / name).write_text(CVAT)
    run(folder)
    assert f'give --classes {folder / name}' in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- D5: void


@pytest.mark.parametrize('text', ['void #000000\nroad #800000\nsky #0000ff', 'road #800000\nsky #0000ff\nvoid #000000',
                                  'name,r,g,b\nroad,128,0,0\nVoid,0,0,0\nsky,0,0,255',
                                  '# CVAT\nroad:128,0,0::\nsky:0,0,255::\nignored:0,0,0::',
                                  'unlabeled #000000\nroad #800000\nsky #0000ff'])
@pytest.mark.parametrize('kind', ['colour', 'palette'])
def test_d5_void_of_another_colour(folder, text, kind):
    colours = np.full((256, 3), 7, np.uint8)
    colours[[0, 1, 255]] = (128, 0, 0), (0, 0, 255), (0, 0, 0)
    mask = draw(48, 64, 3, (0, 1, 255))[1]
    for image_id in 'abcd':
        if kind == 'colour':
            Image.fromarray(colours[mask]).save(mask_of(folder, image_id))
        else:  # the palette as an editor orders it
            save_mask(mask_of(folder, image_id), np.select([mask == 0, mask == 1], [1, 2], 0).astype(np.uint8),
                      np.array([(0, 0, 0), (128, 0, 0), (0, 0, 255)], np.uint8))
    found, path = run(folder, '--classes', write_classes(folder, text))[0], folder.parent / 'out' / RECORDS[0]
    np.testing.assert_array_equal(found['a'][1], mask)
    assert classes.of_record(str(path)).names == ('road', 'sky')


@pytest.mark.parametrize('text, void', [('void\nroad\nsky', 0), ('road\nvoid\nsky', 1), ('road\nsky\nvoid', 2),
                                        ('0,void\n1,road\n2,sky', 0), ('0,road\n1,sky\n9,void', 9),
                                        ('Pixel Value, Class\n0, road\n1, sky\n255, ignore', 255)])
def test_d5_void_of_another_value(folder, text, void):
    values = [value for value in range(3) if value != void][:2]
    raw = draw(48, 64, 3, (*values, void, 255))[1]
    for image_id in 'abcd':
        Image.fromarray(raw).save(mask_of(folder, image_id))
    expected = np.select([raw == values[0], raw == values[1]], [0, 1], 255)
    np.testing.assert_array_equal(run(folder, '--classes', write_classes(folder, text))[0]['a'][1], expected)


# ------------------------------------------------------------------------------------------- D6: palettes


def test_d6_the_colours_of_a_palette_of_its_own_decide(folder, capfd):
    expected = {}
    for image_id in 'abcd':
        mask = np.asarray(Image.open(mask_of(folder, image_id)))
        expected[image_id] = mask
        Image.fromarray(PALETTE[mask]).quantize(4).save(mask_of(folder, image_id))
        assert (np.asarray(Image.open(mask_of(folder, image_id))) != mask).any()
    for image_id, (_, label, _) in run(folder)[0].items():
        np.testing.assert_array_equal(label, expected[image_id])
    lines = [line for line in capfd.readouterr().err.splitlines() if 'odd palette' in line]
    assert len(lines) == 2 and lines[0].endswith(
        "its palette has the classes' colours in an order of its own; the colours count, not the values")
    assert lines[1] == 'note: odd palette: 4 in all; --check --check_json FILE lists them'


def test_d6_own_colours_of_the_classes_decide(folder):
    text = 'road #0a0b0c\ntree #010203\nsky #112233'
    colours = np.array([(1, 2, 3), (17, 34, 51), (10, 11, 12)], np.uint8)
    mask = draw(48, 64, 3, (0, 1, 2))[1]
    for image_id in 'abcd':
        save_mask(mask_of(folder, image_id), mask, colours)
    np.testing.assert_array_equal(run(folder, '--classes', write_classes(folder, text))[0]['a'][1],
                                  np.array([1, 2, 0])[mask])


def test_d6_a_palette_that_mixes_classes_and_other_colours_is_a_fault(folder, capfd):
    palette = PALETTE[[15, 0, 1, 3]].copy()
    palette[3] = 1, 2, 3
    save_mask(mask_of(folder, 'b'), draw(48, 64, 3, (0, 1, 2, 3))[1], palette)
    assert fails(folder).startswith('1 of 4 images')
    assert "b.png: its palette has the classes' colours in another order, and (1, 2, 3), which is no class" in (
        capfd.readouterr().err)


@pytest.mark.parametrize('text, palette', [
    (None, np.arange(768).reshape(256, 3) // 3), (None, np.full((256, 3), 9)),  # grey, or one colour
    ('road\ntree\nsky', PALETTE), ('road #000080\ntree #102030\nsky', PALETTE)])  # a tool's for any classes
def test_d6_where_no_palette_of_the_classes_is_meant_values_decide(folder, capfd, text, palette):
    mask = draw(48, 64, 3, (0, 1, 2))[1]
    for image_id in 'abcd':
        save_mask(mask_of(folder, image_id), mask, palette.astype(np.uint8))
    flags = ['--classes', write_classes(folder, text)] if text else []
    np.testing.assert_array_equal(run(folder, *flags)[0]['a'][1], mask)
    assert 'palette' not in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- D7: names and lists


@pytest.mark.parametrize('ending', ['.JPG', '.Jpeg', '.PNG', '.bmp', '.BMP'])
def test_d7_other_cases_of_an_ending_and_bmp_are_taken(folder, ending):
    image, mask = draw(48, 64, 1)
    image_of(folder, 'b').unlink()
    mask_of(folder, 'b').unlink()
    Image.fromarray(image).save(image_of(folder, 'b', ending), quality=95)
    save_mask(mask_of(folder, 'b', '.PNG' if ending != '.bmp' else '.bmp'), mask)
    found, label, data = run(folder)[0]['b']
    np.testing.assert_array_equal(label, mask)
    assert np.abs(found.astype(int) - image).max() <= (0 if ending.lower() in ('.png', '.bmp') else 25)
    assert (data == image_of(folder, 'b', ending).read_bytes()) == (ending.lower() != '.bmp')


@pytest.mark.parametrize('form, said', [
    ('{}  1', "an id with 1 or -1, as VOC's lists of one class have"), ('{} -1', 'an id with 1 or -1'),
    ('{}.jpg', 'a file name with its ending'), ('{}.PNG', 'a file name with its ending'), ('"{}"', 'in quotes'),
    ("'{}'", 'in quotes'), ('# {}', 'a comment'), ('JPEGImages/{0}.jpg SegmentationClass/{0}.png', 'two paths'),
    ('/VOC/JPEGImages/{}.jpg', 'a path; give the file name alone'), ('{},train', 'more than one word')])
def test_d7_a_list_of_another_form_is_one_line(folder, form, said):
    write_list(folder, 'train', [form.format(image_id) for image_id in 'abc'])
    message = fails(folder)
    assert f'train.txt: {form.format("a")!r} is not an id, but {said}' in message and '(3 such lines)' in message
    with pytest.raises(UserError, match='^1 fault'):
        convert.main(['--data_dir', str(folder), '--check'])


def test_d7_ids_that_only_look_like_another_form_are_ids(folder):
    for image_id in ('a 1', '#a', 'a.jpg', 'x,y', "'q'"):
        image_of(folder, 'a').with_name(f'{image_id}.jpg').write_bytes(image_of(folder, 'a').read_bytes())
        mask_of(folder, image_id).write_bytes(mask_of(folder, 'a').read_bytes())
    write_list(folder, 'train', ['a 1', '#a', 'a.jpg', 'x,y', "'q'"])
    assert list(run(folder)[0]) == ['a 1', '#a', 'a.jpg', 'x,y', "'q'"]


def test_d7_many_missing_images_are_a_few_lines(folder, capfd):
    write_list(folder, 'train', [f'im_{number}' for number in range(300)])
    assert fails(folder).startswith('300 of 301 images')
    lines = [line for line in capfd.readouterr().err.splitlines() if 'im_' in line or 'missing' in line]
    assert len(lines) == 11 and lines[-1] == 'fault: missing: 300 in all; --check --check_json FILE lists them'


@pytest.mark.parametrize('ending, said', [('.tif', 'is neither JPEG nor PNG by its ending; save it as one of them'),
                                          ('.webp', 'is neither JPEG nor PNG'),
                                          ('.HEIC', 'b.HEIC: is neither JPEG nor PNG')])
def test_d7_images_of_other_endings_are_named(folder, capfd, ending, said):
    image_of(folder, 'b').rename(image_of(folder, 'b', ending))
    fails(folder)
    assert said in capfd.readouterr().err


def test_d7_a_jpeg_as_mask_is_named(folder, capfd):
    mask_of(folder, 'b').unlink()
    Image.fromarray(draw(48, 64, 0)[1]).save(mask_of(folder, 'b', '.jpg'))
    fails(folder)
    assert 'b.jpg: a mask must be a PNG; save it anew, not from a JPEG' in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- D8, and lost parts


def test_d8_a_record_without_its_side_file_is_said(folder, tmp_path, capfd):
    """Training prints one line on the classes before its first step, which damaged parameters of the CRF prevent."""
    run(folder)
    train_record, val_record = (str(folder.parent / 'out' / name) for name in RECORDS)
    os.remove(train_record + '.json')
    os.remove(val_record + '.json')
    (tmp_path / 'parameters.json').write_text('{}')
    capfd.readouterr()
    with pytest.raises(UserError):
        train.main(['--dataset_train', train_record, '--dataset_val', val_record, '--output_dir', str(tmp_path / 'run'),
                    '--crf_params', str(tmp_path / 'parameters.json')])
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith('classes')] == [
        f'classes: 21 (background, aeroplane, bicycle, ..., tvmonitor), from VOC, because {train_record}.json is '
        'missing; --classes FILE names others']
    assert classes.of_record(train_record, write_classes(folder, 'a\nb')).names == ('a', 'b')


def test_d8_where_the_classes_differ_the_missing_side_file_is_named(camvid_record, camvid_run, tmp_path):
    lone = str(shutil.copy(camvid_record, tmp_path / 'lone.record'))
    said = f'{lone}, without {lone}.json (copy it as well, or give --classes FILE), has 21 classes'
    with pytest.raises(UserError, match=re.escape(said)):
        find_common_classes(find_checkpoint(str(camvid_run)), lone)
    with pytest.raises(UserError, match=re.escape(said)):
        read_data(camvid_record, lone, None, 'none', False)


@pytest.mark.parametrize('rest', [0, 1, 7, 8, 11, 12, 15])
def test_d8_a_record_cut_anywhere_is_noticed(tmp_path, record, rest):
    with open(record, 'rb') as file:
        data = file.read()
    last = next(iter([example for example in tf.io.tf_record_iterator(record)][-1:]))
    cut = tmp_path / 'cut.record'
    cut.write_bytes(data[:len(data) - len(last) - records.FRAME + rest])
    if rest == 0:  # a sound record of four, but for its side file
        classes.save_side_file(classes.side_file(str(cut)), classes.VOC, 5, np.ones(256, int))
    with pytest.raises(UserError, match='cut.record: .*(cut off|damaged) after example 4|holds 4 examples, but .*json'):
        records.count_examples(str(cut))


def test_a_pipe_for_a_record_is_one_line(tmp_path):
    os.mkfifo(tmp_path / 'a')
    with pytest.raises(UserError, match='is not a file'):
        records.count_examples(str(tmp_path / 'a'))


# ------------------------------------------------------------------------------------------- D9, D10, D11: pictures


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


@pytest.mark.parametrize('added', [
    chunk(b'zTXt', b'Comment\0\0' + zlib.compress(b'a' * 3_000_000)),
    chunk(b'iTXt', b'Comment\0\1\0\0\0' + zlib.compress(b'a' * 3_000_000)),
    chunk(b'iCCP', b'profile\0\0' + zlib.compress(random.Random(0).randbytes(3_000_000))),
    pytest.param(chunk(b'tEXt', b'Comment\0' + b'a' * 70_000_000), marks=pytest.mark.slow),
    chunk(b'zTXt', b'Comment\0\0' + zlib.compress(b'a' * 900_000)) * 99])
def test_d9_large_metadata_is_read(folder, added):
    image, mask = draw(48, 64, 1)
    image_of(folder, 'b').unlink()
    for path, pixels in ((image_of(folder, 'b', '.png'), image), (mask_of(folder, 'b'), mask)):
        Image.fromarray(pixels).save(path)
        data = path.read_bytes()
        path.write_bytes(data[:33] + added + data[33:])  # behind IHDR
    found, label, data = run(folder)[0]['b']
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(label, mask)
    record = str(folder.parent / 'out' / RECORDS[0])
    assert records.count_examples(record) == 3
    with tf.Session() as session:
        np.testing.assert_array_equal(session.run(tf.image.decode_jpeg(data, channels=3)), image)
    np.testing.assert_array_equal(photos.read_photo(str(image_of(folder, 'b', '.png'))), image)


def test_d10_the_bound_is_on_what_comes_out(folder, monkeypatch, capfd):
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 32 * 48)  # of 64 x 48
    fails(folder)
    assert 'a.jpg: more than 0 million pixels; scale it down, as --scale does' in capfd.readouterr().err
    assert run(folder, '--scale', '0.7')[0]['a'][1].shape == (34, 45)


@pytest.mark.slow
def test_d10_81_megapixels_at_a_quarter(folder):
    image_of(folder, 'b').unlink()
    picture = Image.new('L', (9000, 9000))
    picture.paste(1, (0, 0, 4500, 9000))
    for path in (image_of(folder, 'b', '.png'), mask_of(folder, 'b')):
        picture.save(path, compress_level=1)
    write_list(folder, 'train', 'b')
    label = run(folder, '--scale', '0.25', '--val_split', 'train')[0]['b'][1]
    assert label.shape == (2250, 2250) and label[:, :1125].all() and not label[:, 1125:].any()


def test_d10_what_goes_in_is_bounded_by_memory(folder, monkeypatch, capfd):
    memory = psutil.virtual_memory()._replace(available=3071 << 20)
    monkeypatch.setattr(pictures, 'BYTES_PER_PIXEL', 1 << 20)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: memory)
    fails(folder)
    said = 'a.jpg: 64 x 48 pixels need 3,072 MB of memory, and 3,071 MB are free; scale it down'
    assert said in capfd.readouterr().err


@pytest.mark.parametrize('kind, options', [('PNG', {}), ('WEBP', {}), ('GIF', {}), ('TIFF', {}), ('BMP', {})])
def test_d11_another_format_in_a_jpeg_says_what_it_is(folder, capfd, kind, options):
    Image.fromarray(draw(48, 64, 1)[0]).save(image_of(folder, 'b'), kind, **options)
    fails(folder)
    assert f'b.jpg: is not a JPEG file, but {kind}; save it anew, or give it its own ending' in capfd.readouterr().err


@pytest.mark.parametrize('data, said', [
    (b'\0\0\0\x18ftypheic' + bytes(99), 'but HEIC'), (b'<!DOCTYPE html><html>404', 'but text'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'but text'), (b'', 'or its header is damaged'),
    (b'\xff\xd7' * 50, 'or its header is damaged')])
def test_d11_what_is_no_picture_says_what_it_is(folder, capfd, data, said):
    image_of(folder, 'b').write_bytes(data)
    fails(folder)
    assert f'b.jpg: is not a JPEG file, {said}' in capfd.readouterr().err


def test_d11_a_jpeg_called_png_as_mask(folder, capfd):
    Image.fromarray(draw(48, 64, 1)[1]).save(mask_of(folder, 'b'), 'JPEG')
    fails(folder)
    assert 'b.png: is not a PNG file, but JPEG; save it anew' in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- D12, D13: order


def read_order(path, num_examples, seed):
    sampling = batches.Sampling(str(path), num_examples, 1, 32, (0, 0, 0), seed)
    epoch = batches.read_epoch(sampling, tf.constant(0, tf.int64)).batch(num_examples)
    with tf.Session() as session:
        return session.run(tf.data.make_one_shot_iterator(epoch).get_next()).tolist()


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_d12_vocs_own_images_are_spread_over_an_epoch(tmp_path, seed):
    """1,464 images of VOC before 9,118 of SBD: the share of VOC's in each quarter of an epoch, in percent."""
    ids = [f'v{number}' for number in range(1464)] + [f's{number}' for number in range(9118)]
    split = voc.Split('train', 'train.txt', '', '', {}, {})
    written = convert.order_ids(split, ids)
    assert sorted(written) == sorted(ids) and written == convert.order_ids(split, ids)
    with tf.io.TFRecordWriter(str(tmp_path / 'a.record')) as writer:
        for image_id in written:
            writer.write(image_id.encode())
    own = [name.startswith(b'v') for name in read_order(tmp_path / 'a.record', 10_582, seed)]
    shares = [100 * np.mean(quarter) for quarter in np.array_split(own, 4)]
    assert sum(own) == 1464 and np.abs(np.array(shares) - 100 * 1464 / 10_582).max() < 1.5
    for quarter in np.array_split(np.array(written), 4):
        assert abs(100 * np.mean([name.startswith('v') for name in quarter]) - 13.83) < 1.5


def test_d12_what_fits_the_buffer_and_val_keep_their_order(monkeypatch):
    ids = [str(number) for number in range(4097)]
    train_split, val_split = (voc.Split(role, '', '', '', {}, {}) for role in ('train', 'val'))
    assert convert.order_ids(train_split, ids[:4096]) == ids[:4096] and convert.order_ids(val_split, ids) == ids
    assert convert.order_ids(train_split, ids) != ids


@pytest.mark.parametrize('num_examples, size, buffer', [
    (400, 400 * 12_000_000, 89), (10_582, 10_582 * 12_000_000, 89), (1464, 1464 * 130_000, 1464),
    (10_582, 10_582 * 130_000, 4096), (367, 367 * 1_000_000, 367), (3, 3 * 2 ** 31, 1), (5, 0, 5)])
def test_d13_shuffling_is_bounded_in_bytes(num_examples, size, buffer):
    assert batches.shuffle_buffer(num_examples, size) == buffer
    assert buffer == 1 or buffer * size / num_examples <= 2 ** 30


def test_d13_an_epoch_with_a_small_buffer_has_each_example_once(tmp_path, monkeypatch):
    with tf.io.TFRecordWriter(str(tmp_path / 'a.record')) as writer:
        for number in range(20):
            writer.write(bytes([number]) * 1000)
    monkeypatch.setattr(batches, 'SHUFFLE_BYTES', 5200)
    order = [data[0] for data in read_order(tmp_path / 'a.record', 20, 0)]
    assert sorted(order) == list(range(20)) != order
    assert all(number < place + 5 for place, number in enumerate(order))


def test_d12_a_link_to_nothing_is_listed_as_before(folder, capfd):
    image_of(folder, 'b').unlink()
    image_of(folder, 'b').symlink_to('gone.jpg')
    fails(folder)
    assert 'b.jpg: No such file or directory' in capfd.readouterr().err


def test_d13_large_tiles_are_written_in_a_random_order(folder, monkeypatch):
    monkeypatch.setattr(batches, 'SHUFFLE_BYTES', os.path.getsize(image_of(folder, 'a')))
    assert sorted(run(folder)[0]) == ['a', 'b', 'c'] != list(run(folder)[0])


# ------------------------------------------------------------------------------------------- D14: one image


def test_d14_one_image_alone_is_converted_if_its_list_is_named_twice(folder, capfd):
    write_list(folder, 'train', 'a')
    found = run(folder, '--val_split', 'train')
    assert [list(record) for record in found] == [['a'], ['a']]
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith('note: ')]
    assert len(lines) == 1 and lines[0].endswith(
        'train.txt is the list of both train and val: scores are those on images trained on')
    convert.main(['--data_dir', str(folder), '--check', '--val_split', 'train'])
    assert capfd.readouterr().out.splitlines()[-1] == 'no fault: ready to convert'


def test_d14_an_empty_val_list_names_the_way(folder):
    write_list(folder, 'val', [])
    assert 'val.txt: is empty' in (message := fails(folder)) and '--val_split train' in message
    write_list(folder, 'val', 'a')
    assert 'a is in both' in fails(folder)
