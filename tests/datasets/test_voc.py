"""SBD: its masks, which scipy writes here as MATLAB does, its lists, and --sbd_dir on a small SBD."""
import io
import random

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import tensorflow.compat.v1 as tf
from PIL import Image

import convert_fcn_dataset as convert
from datasets import classes, pictures, voc
from datasets.pictures import BadFileError
from utils import UserError

MASK = np.array([[0, 0, 15], [2, 20, 15]], np.uint8)  # 2 high, 3 wide


def save(variables, **options):
    """Bytes of a MATLAB file."""
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **options)
    return file.getvalue()


def mat_of(mask, compressed=True):
    """Bytes of a mask's file as SBD has them: beside the mask a sparse border for each class, and the classes."""
    borders = np.empty((20, 1), object)
    borders[:] = [[scipy.sparse.csc_array(np.eye(2, 3, k=number % 3) > 0)] for number in range(20)]
    fields = {'Boundaries': borders, 'Segmentation': mask, 'CategoriesPresent': np.array([[2], [15], [20]], np.uint8)}
    return save({'GTcls': fields}, do_compression=compressed)


def read(path, content):
    path.write_bytes(content)
    return pictures.read_mask(str(path), classes.VOC, scale=1).labels


def labels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)))


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize('compressed', [True, False])
@pytest.mark.parametrize('height, width', [(2, 3), (1, 1), (1, 4), (5, 1), (37, 50)])
def test_a_mask_is_what_scipy_wrote(tmp_path, compressed, height, width):
    mask = np.random.default_rng(0).integers(0, 21, (height, width), dtype=np.uint8)
    labels = read(tmp_path / 'a.mat', mat_of(mask, compressed))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize('content, reason', [
    (b'', ''), (b'MATLAB 7.3 MAT-file'.ljust(512), ''), (b'\xff\xd8 a JPEG, say' * 50, ''),
    (mat_of(MASK)[:128], 'GTcls'), (mat_of(MASK)[:-30], ''),
    (save({'GTcls': MASK}), ''), (save({'GTinst': {'Segmentation': MASK}}), 'GTcls'),
    (save({'GTcls': {'Boundaries': MASK}}), 'Segmentation'),
    (mat_of(MASK.astype(np.float64)), 'Segmentation is float64 [2, 3]'),
    (mat_of(np.empty((0, 3), np.uint8)), 'Segmentation is uint8 [0, 3]'),
    (mat_of(np.zeros((2, 2, 2), np.uint8)), 'Segmentation is uint8 [2, 2, 2]')])
def test_what_is_not_a_mask_is_one_line(tmp_path, content, reason):
    with pytest.raises(BadFileError) as caught:
        read(tmp_path / 'a.mat', content)
    assert str(caught.value).startswith(f'{tmp_path / "a.mat"}: has no uint8 matrix GTcls.Segmentation, as masks of ')
    assert reason in str(caught.value) and '\n' not in str(caught.value)


def test_a_class_beyond_vocs_is_named(tmp_path):
    with pytest.raises(BadFileError, match='a.mat: class 21 is neither 0..20 nor 255'):
        read(tmp_path / 'a.mat', mat_of(MASK + 1))


def test_damaged_files_end_in_bad_file_errors_alone(tmp_path):
    """Compressed, as SBD's are: their checksum shows damage."""
    whole, chance = mat_of(MASK), random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(124, len(content))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        try:
            read(tmp_path / 'a.mat', bytes(content[:chance.choice([len(content), chance.randrange(len(content))])]))
        except BadFileError as error:
            assert '\n' not in str(error)


# ------------------------------------------------------------------------------------------- lists


def test_the_merged_list_of_the_full_data_is_trainaug(capfd):
    """1,464 train and 1,449 val images of VOC2012; 8,498 and 2,857 of SBD, of which 1,103 are in val."""
    voc_train, voc_val = ([f'{name}{number}' for number in range(count)] for name, count in (('t', 1464), ('v', 1449)))
    in_train, in_val, own = voc_train[:1134], voc_val[:1103], [f's{number}' for number in range(9118)]
    sbd_ids = own + in_val + in_train
    assert len(sbd_ids) == 8498 + 2857
    random.Random(0).shuffle(sbd_ids)
    added = voc.add_sbd(voc_train, voc_val, sbd_ids)
    assert len({*voc_train, *added}) == 10_582 and added == [name for name in sbd_ids if name[0] == 's']
    assert capfd.readouterr().out == ('train: 1,464 of VOC + 9,118 of SBD (2,237 left out: 1,103 in val, 1,134 in '
                                      'train)\n')


def test_an_id_in_both_lists_of_sbd_counts_once(capfd):
    assert voc.add_sbd(['a'], ['v'], ['b', 'v', 'a', 'b', 'v', 'c']) == ['b', 'c']
    assert capfd.readouterr().out == 'train: 1 of VOC + 2 of SBD (2 left out: 1 in val, 1 in train)\n'


# ------------------------------------------------------------------------------------------- --sbd_dir


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', MASK.shape[::-1], (value, value, value)).save(path)


def write_list(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(ids))


@pytest.fixture
def folders(tmp_path):
    """VOC with train a, b and val v, w, whose masks are 1 all over; SBD with lists (c, a, v) and (d, w), all MASK.

    VOC has the image of c as well, and that of d is in SBD alone.
    """
    voc_dir, sbd_dir = tmp_path / 'VOC', tmp_path / 'benchmark_RELEASE' / 'dataset'
    (voc_dir / 'SegmentationClass').mkdir(parents=True)
    for image_id in 'abvwc':
        write_image(voc_dir / 'JPEGImages' / f'{image_id}.jpg', 10)
    for image_id in 'abvw':
        Image.fromarray(np.ones_like(MASK)).save(voc_dir / 'SegmentationClass' / f'{image_id}.png')
    for image_id in 'cavdw':
        write_image(sbd_dir / 'img' / f'{image_id}.jpg', 200)
        (sbd_dir / 'cls').mkdir(exist_ok=True)
        (sbd_dir / 'cls' / f'{image_id}.mat').write_bytes(mat_of(MASK))
    write_list(voc_dir / 'ImageSets' / 'Segmentation' / 'train.txt', 'ab')
    write_list(voc_dir / 'ImageSets' / 'Segmentation' / 'val.txt', 'vw')
    write_list(sbd_dir / 'train.txt', 'cav')
    write_list(sbd_dir / 'val.txt', 'dw')
    return voc_dir, sbd_dir


def run(folders, *flags):
    """Converts, and returns the two records as lists of (id, label's values, image's brightness)."""
    voc_dir, sbd_dir = folders
    out = voc_dir.parent / 'out'
    convert.main(['--data_dir', str(voc_dir), '--sbd_dir', str(sbd_dir), '--output_dir', str(out), *flags])
    return [[describe(example) for example in tf.io.tf_record_iterator(str(out / f'fcn_{role}.record'))]
            for role in ('train', 'val')]


def describe(example):
    features = tf.train.Example.FromString(example).features.feature
    name, label, image = (features[f'image/{name}'].bytes_list.value[0] for name in ('filename', 'label', 'encoded'))
    return name.decode(), labels_of(label).tolist(), np.asarray(Image.open(io.BytesIO(image)))[0, 0, 0]


ONES = np.ones_like(MASK).tolist()


def test_sbd_joins_train_and_leaves_val_out(folders, capfd):
    train, val = run(folders)
    assert train == [('a', ONES, 10), ('b', ONES, 10), ('c', MASK.tolist(), 10), ('d', MASK.tolist(), 200)]
    assert val == [('v', ONES, 10), ('w', ONES, 10)]
    assert capfd.readouterr().out.splitlines()[0] == (
        'train: 2 of VOC + 2 of SBD (3 left out: 2 in val, 1 in train)')


def test_vocs_own_mask_is_taken_where_there_is_one(folders):
    voc_dir, _ = folders
    Image.fromarray(np.full_like(MASK, 255)).save(voc_dir / 'SegmentationClass' / 'c.png')  # in no list of VOC
    (voc_dir / 'SegmentationClass' / 'b.png').unlink()
    write_list(folders[1] / 'val.txt', 'dwb')
    (folders[1] / 'cls' / 'b.mat').write_bytes(mat_of(MASK))
    train, _ = run(folders)
    assert [label for _, label, _ in train] == [ONES, MASK.tolist(), np.full_like(MASK, 255).tolist(), MASK.tolist()]


def test_sbd_pictures_are_scaled_as_vocs(folders):
    train, _ = run(folders, '--scale', '0.4')  # 3 x 2 becomes 1 x 1: the pixel in the middle
    assert train[3][:2] == ('d', [[20]])


def test_a_bad_mask_of_sbd_is_a_bad_pair(folders, capfd):
    path = folders[1] / 'cls' / 'd.mat'
    path.write_bytes(b'')
    with pytest.raises(UserError, match='^1 of 6 images cannot be used'):
        run(folders)
    assert f'{path}: has no uint8 matrix GTcls.Segmentation' in capfd.readouterr().err
    path.write_bytes(mat_of(MASK.T.copy()))
    train, _ = run(folders, '--skip_bad')
    assert [name for name, _, _ in train] == ['a', 'b', 'c']
    assert f'{path}: is 2 x 3 pixels, its image 3 x 2' in capfd.readouterr().err


def test_links_of_sbd_stay_in_the_data_folders(folders, capfd):
    voc_dir, sbd_dir = folders
    (sbd_dir / 'cls' / 'd.mat').rename(voc_dir / 'd.mat')
    (sbd_dir / 'cls' / 'd.mat').symlink_to(voc_dir / 'd.mat')
    assert len(run(folders)[0]) == 4
    (voc_dir / 'd.mat').rename(voc_dir.parent / 'd.mat')
    (sbd_dir / 'cls' / 'd.mat').unlink()
    (sbd_dir / 'cls' / 'd.mat').symlink_to(voc_dir.parent / 'd.mat')
    with pytest.raises(UserError):
        run(folders)
    assert 'd.mat: is a link that leads out of the data folder' in capfd.readouterr().err


@pytest.mark.parametrize('spoil, reason', [
    (lambda sbd_dir: (sbd_dir / 'cls').rename(sbd_dir / 'class'), 'cls is not a folder: name .* of SBD by'),
    (lambda sbd_dir: (sbd_dir / 'val.txt').unlink(), 'val.txt: No such file or directory; name .* by --sbd_dir'),
    (lambda sbd_dir: write_list(sbd_dir / 'val.txt', ['../d']), "val.txt: '../d' is not an id")])
def test_another_layout_is_refused_by_name(folders, spoil, reason):
    spoil(folders[1])
    with pytest.raises(UserError, match=reason):
        run(folders)


def test_sbd_goes_without_own_classes(capfd):
    with pytest.raises(SystemExit):
        convert.main(['--sbd_dir', 'x', '--classes', 'y'])
    assert "error: --sbd_dir goes without --classes: SBD's classes are VOC's" in capfd.readouterr().err


def test_check_looks_at_sbd_too(folders, capfd):
    voc_dir, sbd_dir = folders
    with pytest.raises(UserError, match='^1 fault'):  # every image of the fixture is one of two
        convert.main(['--data_dir', str(voc_dir), '--sbd_dir', str(sbd_dir), '--check'])
    for value, path in enumerate(sorted([*voc_dir.rglob('*.jpg'), *sbd_dir.rglob('*.jpg')])):
        write_image(path, 20 * value)
    capfd.readouterr()
    convert.main(['--data_dir', str(voc_dir), '--sbd_dir', str(sbd_dir), '--check'])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == 'train: 2 of VOC + 2 of SBD (3 left out: 2 in val, 1 in train)'
    assert 'train.txt + SBD: 4 ids, 4 usable; masks: 2 SBD, 2 grey; images from a (3 x 2) to d (3 x 2)' in lines
    assert lines[-1] == 'no fault: ready to convert'
    write_list(sbd_dir / 'train.txt', ['c', '../a', 'c'])
    (sbd_dir / 'cls' / 'd.mat').write_bytes(mat_of(MASK)[:-9])
    with pytest.raises(UserError, match='^3 faults'):
        convert.main(['--data_dir', str(voc_dir), '--sbd_dir', str(sbd_dir), '--check'])
    kinds = [line.split(': ')[1] for line in capfd.readouterr().out.splitlines() if line.startswith('fault')]
    assert kinds == ['not an id', 'repeated id', 'unreadable']
