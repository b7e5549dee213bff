"""convert_fcn_dataset.py --check on drawn data sets, sound ones and spoilt ones."""
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import convert_fcn_dataset as convert
import utils
from datasets import classes
from tools import make_sample_dataset
from utils import UserError


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawn') / 'VOC'
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (('LONG_SIDE', (80, 81)), ('SHORT_SIDE', (64, 65)), ('UPRIGHT', 0)):
            patch.setattr(make_sample_dataset, name, value)
        make_sample_dataset.main(['--output_dir', str(folder), '--num_train', '12', '--num_val', '20'])
    return folder


@pytest.fixture
def voc(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / 'VOC')


def image_of(voc, number, split='train'):
    return voc / 'JPEGImages' / f'{split}_{number:06d}.jpg'


def mask_of(voc, number, split='train'):
    return voc / 'SegmentationClass' / f'{split}_{number:06d}.png'


def list_of(voc, split):
    return voc / 'ImageSets' / 'Segmentation' / f'{split}.txt'


def save_mask(path, mask, like=None):
    """Saves uint8 [H, W] in VOC's palette, or in the colours of `like`, uint8 [256, 3]."""
    picture = Image.fromarray(mask)
    picture.putpalette((utils.voc_palette() if like is None else like).tobytes())
    picture.save(path)


def check(voc, capfd, *flags):
    """Runs --check; returns (the error or None, lines on stdout, the JSON)."""
    files = {path: path.lstat().st_mtime_ns for path in voc.rglob('*')}
    report, error = voc.parent / 'check.json', None
    try:
        convert.main(['--data_dir', str(voc), '--check', '--check_json', str(report), '--output_dir',
                      str(voc.parent / 'out'), *flags])
    except UserError as caught:
        error = str(caught)
    assert {path: path.lstat().st_mtime_ns for path in voc.rglob('*')} == files
    assert sorted(os.listdir(voc.parent)) == ['VOC', 'check.json']
    return error, capfd.readouterr().out.splitlines(), json.loads(report.read_text())


# ------------------------------------------------------------------------------------------- eight faults


def plant_eight(voc):
    """Plants a fault of each of 8 kinds; returns kind to the file or list that must be named, and what is said."""
    image_of(voc, 0).write_bytes(image_of(voc, 0).read_bytes()[:-300])
    mask_of(voc, 1).unlink()
    labels = np.asarray(Image.open(mask_of(voc, 2)))
    save_mask(mask_of(voc, 2), labels[:, :-1])
    labels = np.array(Image.open(mask_of(voc, 3)))
    labels[0, 0] = 77
    save_mask(mask_of(voc, 3), labels)
    colours = np.array(Image.open(mask_of(voc, 4)).convert('RGB'))
    colours[5, 5] = 1, 2, 3
    Image.fromarray(colours).save(mask_of(voc, 4))
    shutil.copy(image_of(voc, 5), image_of(voc, 0, 'val'))
    shutil.copy(mask_of(voc, 5), mask_of(voc, 0, 'val'))
    with open(list_of(voc, 'val'), 'a') as file:
        file.write('train_000006\n')
    with open(list_of(voc, 'train'), 'a') as file:
        file.write('../../secret\n')
    return {'unreadable': (image_of(voc, 0), 'image file is truncated'),
            'missing': (mask_of(voc, 1), 'No such file or directory'),
            'size mismatch': (mask_of(voc, 2), 'is 79 x 64 pixels, its image 80 x 64'),
            'class out of range': (mask_of(voc, 3), 'class 77 is neither 0..20 nor 255'),
            'unknown colour': (mask_of(voc, 4), 'colour (1, 2, 3) is not in the VOC colour map'),
            'same image in both lists': (image_of(voc, 5), 'are the same image; take it out of one list'),
            'id in both lists': (list_of(voc, 'val'), 'train_000006 is in both'),
            'not an id': (list_of(voc, 'train'), "'../../secret' is not an id")}


def test_eight_planted_faults_are_found_and_nothing_else(voc, capfd):
    _, _, sound = check(voc, capfd)
    planted = plant_eight(voc)
    error, lines, report = check(voc, capfd)
    assert error == '8 faults: training would go wrong; mend what is listed above'
    found = {fault['kind']: fault['message'] for fault in report['faults']}
    assert len(report['faults']) == 8 and found.keys() == planted.keys()
    for kind, (path, said) in planted.items():
        assert str(path) in found[kind] and said in found[kind]
        assert f'fault: {kind}: {found[kind]}' in lines
    assert sum(line.startswith('fault: ') for line in lines) == 8
    assert [note['kind'] for note in report['notes']] == [note['kind'] for note in sound['notes']]


def test_what_is_sound_has_no_fault(voc, capfd):
    error, lines, report = check(voc, capfd)
    assert error is None and report['faults'] == [] and lines[-1] == 'no fault: ready to convert'
    assert 'train.txt and val.txt: no id and no image in both' in lines
    assert (report['train']['ids'], report['train']['images'], report['val']['images']) == (12, 12, 20)
    assert report['train']['masks'] == {'palette': 12}
    masks = np.stack([np.asarray(Image.open(mask_of(voc, number))) for number in range(12)])
    counts = {name: int((masks == value).sum()) for value, name in enumerate(classes.VOC.names)}
    assert report['train']['pixels'] == {**counts, 'void': int((masks == 255).sum())}
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows['void'][1:3] == [f'{(masks == 255).sum():,}', f'{(masks == 255).mean():.2%}']


# ------------------------------------------------------------------------------------------- finer points


def only_fault(voc, capfd, *flags):
    error, _, report = check(voc, capfd, *flags)
    assert error.startswith('1 fault:') and len(report['faults']) == 1
    return report['faults'][0]


def test_an_image_saved_anew_is_the_same_pixel_for_pixel(voc, capfd):
    data = image_of(voc, 5).read_bytes()
    image_of(voc, 0, 'val').write_bytes(data[:2] + b'\xff\xfe\x00\x07twin!' + data[2:])  # a comment
    assert 'are the same image; take it out of one list' in only_fault(voc, capfd)['message']


def test_png_images_are_compared_by_their_colours(voc, capfd):
    """Of one size, the same indices in other colours are another image, and the same colours in RGB the same."""
    pixels = np.resize(np.arange(20, dtype=np.uint8), (64, 80))
    for number, colours in ((0, [[value, 0, 9] for value in range(256)]), (1, [[0, value, 9] for value in range(256)])):
        image_of(voc, number).unlink()
        save_mask(image_of(voc, number).with_suffix('.png'), pixels, like=np.array(colours, np.uint8))
    image_of(voc, 0, 'val').unlink()
    twin = image_of(voc, 0, 'val').with_suffix('.png')
    Image.open(image_of(voc, 0).with_suffix('.png')).convert('RGB').save(twin)
    message = only_fault(voc, capfd)['message']
    assert message.startswith(str(image_of(voc, 0).with_suffix('.png'))) and str(twin) in message


def test_two_images_of_one_id_are_a_fault(voc, capfd):
    twin = image_of(voc, 3).with_suffix('.jpeg')
    Image.open(image_of(voc, 3)).save(twin)
    assert only_fault(voc, capfd) == {
        'kind': 'two images', 'message': f'{twin}: train_000003.jpg is there as well; keep one of them'}


def test_the_same_image_twice_in_one_list_is_a_note(voc, capfd):
    for number in (1, 2):
        shutil.copy(image_of(voc, 0), image_of(voc, number))
    error, _, report = check(voc, capfd)
    notes = [note['message'] for note in report['notes'] if note['kind'] == 'same image twice']
    assert error is None and len(notes) == 1 and ', and 1 more are the same image' in notes[0]


def test_sbd_images_of_val_are_found(voc, capfd):
    shutil.copytree(voc / 'SegmentationClass', voc / 'SegmentationClassAug')
    list_of(voc, 'trainaug').write_text('train_000000\nval_000003\nval_000004\n')
    error, _, report = check(voc, capfd, '--train_split', 'trainaug', '--train_label_dir', 'SegmentationClassAug')
    assert error.startswith('2 faults')
    assert [fault['message'].split()[0] for fault in report['faults']] == ['val_000003', 'val_000004']
    assert all("2 in all) (SBD's own lists hold images of VOC's val)" in fault['message'] for fault in report['faults'])


def test_links_repeated_ids_and_kinds_of_masks_are_faults(voc, capfd):
    image_of(voc, 0).rename(voc / '0.jpg')
    image_of(voc, 0).symlink_to('/etc/passwd')
    Image.open(mask_of(voc, 1)).convert('LA').save(mask_of(voc, 1))
    with open(list_of(voc, 'train'), 'a') as file:
        file.write('train_000002\n')
    _, _, report = check(voc, capfd)
    assert [fault['kind'] for fault in report['faults']] == ['repeated id', 'link', 'kind of mask']


def test_faults_of_a_list_that_is_both_count_once(voc, capfd):
    mask_of(voc, 0).unlink()
    error, lines, report = check(voc, capfd, '--val_split', 'train')
    assert error.startswith('1 fault:') and len(report['faults']) == 1
    assert sum(line.startswith('fault: ') for line in lines) == 1


def test_small_images_are_those_after_scaling(voc, capfd):
    error, _, report = check(voc, capfd, '--scale', '0.4')
    notes = [note['message'] for note in report['notes'] if note['kind'] == 'small image']
    assert error is None and notes[0].startswith('train.txt: 12 images are smaller than 32 pixels on a side')
    assert report['train']['largest']['width'] == 32 and report['train']['largest']['height'] == 26


def test_a_pair_with_two_faults_has_two(voc, capfd):
    image_of(voc, 0).unlink()
    mask_of(voc, 0).unlink()
    error, _, report = check(voc, capfd)
    assert error.startswith('2 faults') and report['train']['images'] == 11


def test_masks_of_0_and_255_leave_nothing_to_learn(voc, capfd):
    for number in range(12):
        labels = np.asarray(Image.open(mask_of(voc, number)))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(mask_of(voc, number))
    assert only_fault(voc, capfd)['kind'] == 'nothing to learn'


def test_oddities_are_notes_and_no_faults(voc, capfd):
    Image.open(mask_of(voc, 0)).convert('RGB').save(mask_of(voc, 0))
    save_mask(mask_of(voc, 1), np.full((64, 80), 255, np.uint8))
    Image.new('RGB', (80, 31)).save(image_of(voc, 2))
    save_mask(mask_of(voc, 2), np.ones((31, 80), np.uint8))
    swapped = utils.voc_palette()
    swapped[[1, 15]] = swapped[[15, 1]]
    save_mask(mask_of(voc, 3), np.asarray(Image.open(mask_of(voc, 3))) * 0 + 1, like=swapped)
    save_mask(voc / 'SegmentationClass' / 'more.png', np.zeros((64, 80), np.uint8))
    error, lines, report = check(voc, capfd)
    notes = {note['kind']: note['message'] for note in report['notes']}
    assert error is None and report['faults'] == []
    assert notes.pop('class not in train').startswith('train.txt: no pixel of ')
    assert notes == {
        'colour mask': f"train.txt: 1 masks are colour pictures, which are read by VOC's colours, such as that of "
                       f'{image_of(voc, 0)}',
        'void mask': f'train.txt: 1 masks are void all over, such as that of {image_of(voc, 1)}',
        'small image': f'train.txt: 1 images are smaller than 32 pixels on a side, such as {image_of(voc, 2)}',
        'odd palette': f"{mask_of(voc, 3)}: its palette has the classes' colours in an order of its own; the colours "
                       'count, not the values',
        'in no list': '1 masks are in neither train.txt nor val.txt'}
    assert report['train']['masks'] == {'colour': 1, 'palette': 11}
    assert report['train']['smallest'] == {'id': 'train_000002', 'width': 80, 'height': 31}


def test_many_faults_of_a_kind_are_cut_short_on_the_terminal_alone(voc, capfd):
    for number in range(12):
        mask_of(voc, number).unlink()
    error, lines, report = check(voc, capfd)
    assert error.startswith('12 faults') and len(report['faults']) == 12
    faults = [line for line in lines if line.startswith('fault: ')]
    assert len(faults) == 11 and faults[-1] == 'fault: missing: 12 in all; --check --check_json FILE lists them'


def test_nothing_is_written_unless_asked_for(voc, monkeypatch, capfd):
    monkeypatch.chdir(voc.parent)
    convert.main(['--data_dir', 'VOC', '--check'])
    assert os.listdir(voc.parent) == ['VOC']
    with pytest.raises(OSError, match="No such file or directory: 'none/x.json'"):
        convert.main(['--data_dir', 'VOC', '--check', '--check_json', 'none/x.json'])
    with pytest.raises(SystemExit):
        convert.main(['--check_json', 'x.json'])
    assert 'error: --check_json goes with --check' in capfd.readouterr().err


def test_a_palette_of_its_own_is_not_odd(voc, capfd):
    save_mask(mask_of(voc, 0), np.ones((64, 80), np.uint8), like=np.full((256, 3), 9, np.uint8))
    _, _, report = check(voc, capfd)
    assert not any(note['kind'] == 'odd palette' for note in report['notes'])


# ------------------------------------------------------------------------------------------- classes of one's own


@pytest.fixture
def own_classes(voc):
    """Function of lines to --classes with a file of these."""
    def flags(*lines):
        (voc / 'classes.txt').write_text('\n'.join(lines))
        return '--classes', str(voc / 'classes.txt')
    return flags


def paint_all(voc, values, colours=None):
    """Each mask anew: its columns take the values in turn, in VOC's palette or in other colours."""
    mask = np.tile(np.resize(np.array(values, np.uint8), 80), (64, 1))
    for path in (voc / 'SegmentationClass').iterdir():
        save_mask(path, mask, None if colours is None else np.array(colours, np.uint8))


def test_own_classes_are_checked_and_counted(voc, capfd, own_classes):
    paint_all(voc, [0, 1, 2, 255])
    error, lines, report = check(voc, capfd, *own_classes('road', 'kerb', 'tree'))
    assert error is None and report['notes'] == []
    quarter = 12 * 64 * 80 // 4
    assert report['train']['pixels'] == {'road': quarter, 'kerb': quarter, 'tree': quarter, 'void': quarter}
    error, _, report = check(voc, capfd, *own_classes('road', 'kerb'))
    assert error.startswith('32 faults')
    assert report['faults'][0] == {'kind': 'class out of range', 'message': f'{mask_of(voc, 0)}: class 2 is neither '
                                                                            '0..1 nor 255; does --classes name all?'}


@pytest.mark.parametrize('names, values, held', [
    (('other', 'road'), [0, 255], 'other (0) and void (255)'), (('background', 'road'), [0], 'background (0) and void'),
    (('road', 'tree'), [255], 'void (255)'), (('road', 'tree', 'sky'), [1], 'tree (1) and void (255)'),
    (('road', 'tree', 'void #000000'), [1, 2, 255], 'tree (1) and void (255)')])
def test_d3_masks_of_one_class_are_a_fault(voc, capfd, own_classes, names, values, held):
    paint_all(voc, values, colours=[(9, 9, 9)] * 256)
    flags = own_classes(*names)
    error, _, report = check(voc, capfd, *flags)
    assert {fault['kind'] for fault in report['faults']} == {'nothing to learn'} and error.endswith('listed above')
    assert report['faults'][0]['message'].startswith(f'train.txt: the masks hold only {held}')
    assert 'for two, 0 and 1 instead of 0 and 255, which is void' in report['faults'][0]['message']
    with pytest.raises(UserError, match='train.txt: the masks hold only') as caught:
        convert.main(['--data_dir', str(voc), '--output_dir', str(voc.parent / 'out'), *flags])
    assert held in str(caught.value) and '\n' not in str(caught.value) and not os.listdir(voc.parent / 'out')


def test_palettes_and_colours_are_held_against_the_classes_own(voc, capfd, own_classes):
    paint_all(voc, [0, 1, 255])
    flags = own_classes('road #800000', 'tree #0a0b0c')
    colours = np.zeros((256, 3), np.uint8)
    colours[[0, 1, 255]] = (10, 11, 12), (128, 0, 0), (224, 224, 192)
    mask = np.asarray(Image.open(mask_of(voc, 0)))
    save_mask(mask_of(voc, 0), mask, like=colours)
    Image.fromarray(colours[1 - mask % 255 + mask // 255 * 254]).save(mask_of(voc, 1))
    _, _, report = check(voc, capfd, *flags)
    assert report['faults'] == []
    assert {note['kind']: note['message'] for note in report['notes']} == {
        'odd palette': f"{mask_of(voc, 0)}: its palette has the classes' colours in an order of its own; the colours "
                       'count, not the values',
        'colour mask': "train.txt: 1 masks are colour pictures, which are read by your classes' colours, such as that "
                       f'of {image_of(voc, 1)}'}


def test_vocs_palette_on_masks_of_other_classes_is_not_odd(voc, capfd, own_classes):
    paint_all(voc, [1, 2])  # whose colours are those of class 0 and 1, where no class is the background
    error, _, report = check(voc, capfd, *own_classes('road', 'kerb', 'tree'))
    assert error is None and [note['kind'] for note in report['notes']] == ['class not in train']
