"""Exports of annotation tools, in exactly the form that each tool writes, become records."""
import hashlib
import io

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

import convert_fcn_dataset as convert
from datasets import classes, voc
from utils import UserError

SIZES = ((40, 56), (48, 40), (33, 64), (64, 64), (50, 50))  # height, width of the images a, b, c, d, e
CVAT = '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\ntree:61,245,61::\n'
CVAT_COLOURS = np.array([(0, 0, 0), (250, 50, 83), (61, 245, 61)], np.uint8)
LABELME_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # imgviz's, which are VOC's


def draw(number):
    """An image of noise, uint8 [H, W, 3], and a mask of the classes 0, 1, 2, uint8 [H, W]."""
    chance = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    mask = np.kron(chance.integers(0, 3, (9, 9)), np.ones((8, 8), int))[:height, :width].astype(np.uint8)
    return chance.integers(0, 256, (height, width, 3), dtype=np.uint8), mask


def save_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(number)[0]).save(path)


def save_palette(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette(LABELME_COLOURS + [9] * (768 - 9))
    picture.save(path)


def run(root, *flags):
    """Converts; returns the two records as dicts of id to label, uint8 [H, W]."""
    convert.main(['--data_dir', str(root), '--output_dir', str(root / 'out'), *flags])
    found = []
    for role in voc.ROLES:
        found.append({})
        for serialised in tf.io.tf_record_iterator(str(root / 'out' / f'fcn_{role}.record')):
            features = tf.train.Example.FromString(serialised).features.feature
            name, label = (features[f'image/{key}'].bytes_list.value[0] for key in ('filename', 'label'))
            found[-1][name.decode()] = np.asarray(Image.open(io.BytesIO(label)))
    return found


def assert_masks(found, names='abcde'):
    """Each of the ids `names` is in one of the two records, and has its mask."""
    assert found[0] and found[1] and sorted([*found[0], *found[1]]) == sorted(names)
    for name, label in [*found[0].items(), *found[1].items()]:
        np.testing.assert_array_equal(label, draw('abcde'.index(name[0]))[1])


@pytest.mark.parametrize('older', [False, True])
def test_labelme2voc(tmp_path, older):
    """labelme2voc.py writes no list; older versions have arrays in SegmentationClass and masks in another folder."""
    masks = 'SegmentationClassPNG' if older else 'SegmentationClass'
    for number, name in enumerate('abcde'):
        save_image(tmp_path / 'JPEGImages' / f'{name}.jpg', number)
        save_palette(tmp_path / masks / f'{name}.png', draw(number)[1])
        save_image(tmp_path / 'SegmentationClassVisualization' / f'{name}.jpg', number)
        arrays = tmp_path / ('SegmentationClass' if older else 'SegmentationClassNpy')
        arrays.mkdir(exist_ok=True)
        np.save(arrays / f'{name}.npy', draw(number)[1].astype(np.int32))
    (tmp_path / 'class_names.txt').write_text('_background_\npotted plant\ntv/monitor')
    flags = ['--train_label_dir', masks] if older else []
    with pytest.raises(UserError, match='--val_fraction'):
        run(tmp_path, *flags)
    assert_masks(run(tmp_path, '--classes', str(tmp_path / 'class_names.txt'), '--val_fraction', '0.4', *flags))


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.JPEG'])
def test_cvat_segmentation_mask(tmp_path, ending):
    """The list of a CVAT export is default.txt; JPEGImages is there if images were saved; if not, it may
    be a link."""
    photos = tmp_path / 'photos'
    for number, name in enumerate('abcde'):
        save_image(photos / f'{name}{ending}', number)
        for folder in ('SegmentationClass', 'SegmentationObject'):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(CVAT_COLOURS[draw(number)[1]]).save(tmp_path / folder / f'{name}.png')
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'default.txt').write_text('a\nb\nc\nd\ne\n')
    (tmp_path / 'labelmap.txt').write_text(CVAT)
    flags = ['--classes', str(tmp_path / 'labelmap.txt'), '--train_split', 'default', '--val_fraction', '0.4']
    with pytest.raises(UserError, match='JPEGImages is not a folder'):
        run(tmp_path, *flags)
    (tmp_path / 'JPEGImages').symlink_to(photos)
    assert_masks(run(tmp_path, *flags))
    assert [path.name for path in lists.iterdir()] == ['default.txt']


def test_cvat_sorts_its_labels_and_keeps_folders(tmp_path):
    """The background becomes class 0. An image without annotations is in the list, but has no mask."""
    colours = CVAT_COLOURS[[1, 0, 2]].tolist()
    (tmp_path / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\n' + ''.join(
        f'{name}:{",".join(map(str, colour))}::\n' for name, colour in zip(('Car', 'background', 'tree'), colours)))
    assert classes.read_classes(str(tmp_path / 'labelmap.txt')).names == ('background', 'Car', 'tree')
    for number, name in enumerate('abcde'):
        save_image(tmp_path / 'JPEGImages' / 'film' / f'{name}.jpg', number)
        path = tmp_path / 'SegmentationClass' / 'film' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(CVAT_COLOURS[draw(number)[1]]).save(path)
    save_image(tmp_path / 'JPEGImages' / 'film' / 'empty.jpg', 0)
    save_image(tmp_path / 'JPEGImages' / 'film' / '.thumbnails' / 'a.jpg', 0)
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'default.txt').write_text(''.join(f'film/{name}\n' for name in (*'abcde', 'empty')))
    flags = ['--classes', str(tmp_path / 'labelmap.txt'), '--train_split', 'default', '--val_fraction', '0.4']
    with pytest.raises(UserError, match='1 of 6 images cannot be used: mend them or pass --skip_bad'):
        run(tmp_path, *flags)
    found = [{name.removeprefix('film/'): label for name, label in of_split.items()}
             for of_split in run(tmp_path, *flags, '--skip_bad')]
    assert_masks(found)


def test_the_val_masks_of_one_list_are_in_the_train_folder(tmp_path):
    for number, name in enumerate('abcde'):
        save_image(tmp_path / 'JPEGImages' / f'{name}.jpg', number)
        save_palette(tmp_path / 'masks' / f'{name}.png', draw(number)[1])
    save_palette(tmp_path / 'masks' / '.ipynb_checkpoints' / 'a-checkpoint.png', draw(0)[1])
    (tmp_path / 'names.txt').write_text('_background_\npotted plant\ntv/monitor')
    assert_masks(run(tmp_path, '--classes', str(tmp_path / 'names.txt'), '--val_fraction', '0.4', '--train_label_dir',
                     'masks'))


def make_roboflow(root, folders):
    for folder, numbers in folders.items():
        for number in numbers:
            name = f'{"abcde"[number]}_jpg.rf.0f1e2d3c'
            save_image(root / folder / f'{name}.jpg', number)
            Image.fromarray(draw(number)[1]).save(root / folder / f'{name}_mask.png')
        (root / folder / '_classes.csv').write_text('Pixel Value, Class\n0, background\n1, car\n2, tree\n')
    return ['--classes', str(root / 'train' / '_classes.csv')]


def test_roboflow_semantic_segmentation_masks(tmp_path, capfd):
    flags = make_roboflow(tmp_path, {'train': (0, 1, 2), 'valid': (3,), 'test': (4,)})
    found = run(tmp_path, *flags)
    assert [[name[0] for name in record] for record in found] == [['a', 'b', 'c'], ['d']]
    assert_masks(found, [f'{name}_jpg.rf.0f1e2d3c' for name in 'abcd'])
    convert.main(['--data_dir', str(tmp_path), *flags, '--check'])
    assert 'train and valid: no id and no image in both' in capfd.readouterr().out
    with pytest.raises(UserError, match='valid exists: leave out --val_fraction$'):
        run(tmp_path, *flags, '--val_fraction', '0.5')


def test_roboflow_without_valid_is_divided(tmp_path):
    flags = make_roboflow(tmp_path, {'train': range(5)})
    with pytest.raises(UserError, match='valid: No such file'):
        run(tmp_path, *flags)
    (tmp_path / 'valid').mkdir()
    with pytest.raises(UserError, match='valid: holds no masks'):
        run(tmp_path, *flags)
    (tmp_path / 'valid').rmdir()
    assert_masks(run(tmp_path, *flags, '--val_fraction', '0.4'), [f'{name}_jpg.rf.0f1e2d3c' for name in 'abcde'])


# ------------------------------------------------------------------------------------------- --val_fraction


def test_an_image_stays_where_it_is_when_others_come():
    ids = [f'{number:06d}' for number in range(2000)]
    train, val = voc.divide_ids(ids, 0.2)
    assert sorted(train + val) == ids and train == sorted(train)
    assert abs(len(val) - 400) < 4 * np.sqrt(2000 * 0.2 * 0.8)  # four standard deviations
    assert val == [name for name in ids if hashlib.sha256(name.encode()).digest()[0] < 51.2
                   and int(hashlib.sha256(name.encode()).hexdigest(), 16) < 0.2 * 2 ** 256]
    fewer, fewer_val = voc.divide_ids(ids[500:700], 0.2)
    assert set(fewer) <= set(train) and set(fewer_val) <= set(val)
    assert set(val) < set(voc.divide_ids(ids, 0.3)[1])


@pytest.mark.parametrize('count', [2, 3, 5])
@pytest.mark.parametrize('fraction', [1e-6, 0.999999])
def test_both_parts_hold_an_image(count, fraction):
    train, val = voc.divide_ids(list('abcde'[:count]), fraction)
    assert min(len(train), len(val)) == 1 and len(train) + len(val) == count
    with pytest.raises(UserError, match='no image beside a;'):
        voc.divide_ids(['a'], fraction)


def test_lists_that_exist_are_neither_changed_nor_ignored(tmp_path, capfd):
    for number, name in enumerate('abcde'):
        save_image(tmp_path / 'JPEGImages' / f'{name}.jpg', number)
        save_palette(tmp_path / 'SegmentationClass' / f'{name}.png', draw(number)[1])
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('a\nb\nc\n')
    assert_masks(run(tmp_path, '--val_fraction', '0.4'), 'abc')
    assert [path.name for path in lists.iterdir()] == ['train.txt']
    with pytest.raises(UserError, match='trian.txt: No such file .* by --train_split$'):
        run(tmp_path, '--val_fraction', '0.4', '--train_split', 'trian')
    convert.main(['--data_dir', str(tmp_path), '--check', '--val_fraction', '0.4'])
    out = capfd.readouterr().out
    assert 'train.txt (train) and train.txt (val): no id and no image in both' in out and ' 2 ids, 2 usable' in out
    (lists / 'val.txt').write_text('d\ne\n')
    with pytest.raises(UserError, match='val.txt exists'):
        run(tmp_path, '--val_fraction', '0.4')


@pytest.mark.parametrize('fraction', ['0', '1', '-1', 'nan', 'x'])
def test_a_fraction_out_of_range_is_one_line(fraction, capsys):
    with pytest.raises(SystemExit):
        convert.parse_args(['--val_fraction', fraction])
    assert capsys.readouterr().err.count('\n') == 1
