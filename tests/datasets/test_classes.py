import json
import os

import numpy as np
import pytest

import utils
from datasets import classes
from utils import UserError

CAMVID = ('sky', 'building', 'pole')


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_vocs_classes_have_vocs_colours():
    assert len(classes.VOC.names) == 21 and classes.VOC.has_background
    assert [classes.VOC.names[i] for i in (0, 1, 8, 15, 20)] == ['background', 'aeroplane', 'cat', 'person',
                                                                 'tvmonitor']
    np.testing.assert_array_equal(classes.VOC.palette, utils.voc_palette())


def test_without_a_background_nothing_is_black(tmp_path):
    class_set = classes.read_classes(write(tmp_path / 'classes.txt', '\ufeffsky\r\n\nbuilding \n sign  symbol'))
    assert class_set.names == ('sky', 'building', 'sign symbol') and not class_set.has_background
    assert class_set.palette[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert class_set.palette[255].tolist() == [224, 224, 192]


def test_a_line_may_end_in_a_colour(tmp_path):
    class_set = classes.read_classes(write(tmp_path / 'classes.txt', 'background\nsky #80A0ff\nC# code\n'))
    assert class_set.names == ('background', 'sky', 'C# code')
    assert class_set.colours == ((0, 0, 0), (128, 160, 255), (0, 128, 0))


@pytest.mark.parametrize('content, message', [
    ('', 'is empty; name a text file'), ('# none', 'holds 0 classes beside void; give 2 to 254'),
    ('road', 'holds 1 classes'), ('road\nvoid', 'holds 1 classes'),
    ('\n'.join(map(str, range(255))), 'holds 255 classes'),
    ('sky\ntree\nsky', 'the name sky stands for two classes'), ('sky #010203\ntree #010203', r'the colour \(1, 2, 3\)'),
    ('sky #e0e0c0\ntree', 'is that of void'), ('sky #80a0f', "'sky #80a0f' does not end in a colour"),
    ('a' * 61 + '\nb', 'is not a name'), ('sky\x1b2J\ntree', 'is not a name'),
    (b'\xff\xfe\0', 'is not UTF-8 text')])
def test_what_is_no_list_of_classes_is_one_line(tmp_path, content, message):
    path = write(tmp_path / 'classes.txt', content)
    with pytest.raises(UserError, match=message) as raised:
        classes.read_classes(path)
    assert str(raised.value).startswith(f'--classes {path}') and len(str(raised.value).splitlines()) == 1


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match='--classes .*: No such file'):
        classes.read_classes(str(tmp_path / 'classes.txt'))
    with pytest.raises(UserError, match='is not a file'):
        classes.read_classes(str(tmp_path))


# ------------------------------------------------------------------------------------------- side files and runs


def test_a_side_file_keeps_all(tmp_path):
    record = str(tmp_path / 'a.record')
    class_set = classes.make_class_set(CAMVID, [(1, 2, 3), None, None])
    pixels = np.zeros(256, int)
    pixels[[0, 1, 2, 255]] = 5, 6, 0, 7
    classes.save_side_file(classes.side_file(record), class_set, 4, pixels)
    assert json.loads((tmp_path / 'a.record.json').read_text()) == {
        'classes': [{'name': 'sky', 'colour': '#010203'}, {'name': 'building', 'colour': '#008000'},
                    {'name': 'pole', 'colour': '#808000'}], 'images': 4, 'pixels': [5, 6, 0, 7]}
    assert classes.read_side_file(record) == {'classes': class_set, 'images': 4, 'pixels': [5, 6, 0, 7]}
    assert classes.of_record(record) == class_set


def test_the_text_of_a_class_set_is_a_list_of_classes(tmp_path):
    class_set = classes.make_class_set(('two words', 'x #123456', '图'), [(1, 2, 255), None, None])
    assert classes.as_text(class_set).startswith('two words #0102ff\nx #123456 #')
    assert classes.read_classes(write(tmp_path / 'classes.txt', classes.as_text(class_set))) == class_set


def link_to_itself(path):
    path.symlink_to(path.name)


def side_file(name='sky', colour='#010203', images=1, pixels=(1, 2, 0)):
    entries = [{'name': name, 'colour': colour}, {'name': 'tree', 'colour': '#102030'}]
    return json.dumps({'classes': entries, 'images': images, 'pixels': pixels})


@pytest.mark.parametrize('content', [
    '', '[]', '{}', 'null', '{"classes": [], "images": 1, "pixels": []}', '[' * 100000, b'\xff', side_file(pixels=[1]),
    side_file(colour='red'), side_file(colour='#0102'), side_file(colour=7), side_file(name=1), side_file(images=-1),
    side_file(images='1'), side_file(pixels=[1, 0.5, 0])])
def test_a_damaged_side_file_is_named(tmp_path, content):
    write(tmp_path / 'a.record.json', content)
    with pytest.raises(UserError, match='a.record.json: damaged; mend it, or write the record again'):
        classes.read_side_file(str(tmp_path / 'a.record'))


@pytest.mark.parametrize('make, told', [(os.mkfifo, 'is not a file'), (os.mkdir, 'is not a file'),
                                        (link_to_itself, 'Too many')])
def test_a_side_file_that_is_none_is_named(tmp_path, make, told):
    make(tmp_path / 'a.record.json')
    with pytest.raises(UserError, match=f'a.record.json: {told}.*; mend it, or write the record again'):
        classes.read_side_file(str(tmp_path / 'a.record'))


def test_a_record_without_side_file_is_vocs_or_as_told(tmp_path):
    record = str(tmp_path / 'a.record')
    assert classes.of_record(record) == classes.VOC
    assert classes.of_record(record, write(tmp_path / 'classes.txt', 'sky\ntree')).names == ('sky', 'tree')


def test_a_list_that_differs_from_the_side_file_is_refused(tmp_path):
    record = str(tmp_path / 'a.record')
    classes.save_side_file(classes.side_file(record), classes.make_class_set(CAMVID), 1, np.ones(256, int))
    with pytest.raises(UserError, match='has 2 classes, of which number 1 is tree; .*a.record.json has 3 classes, of '
                                        'which number 1 is building: take data'):
        classes.of_record(record, write(tmp_path / 'classes.txt', 'sky\ntree'))


def test_the_classes_of_a_run(tmp_path):
    class_set = classes.make_class_set(CAMVID)
    settings = {'classes': classes.as_json(class_set)}
    assert classes.of_run(settings, 3, 'x/model.ckpt-1') == class_set
    assert classes.of_run({}, 21, 'x/model.ckpt-1') == classes.VOC
    with pytest.raises(UserError, match='x/model.ckpt-1: has 4 classes, its run names 3'):
        classes.of_run(settings, 4, 'x/model.ckpt-1')
    with pytest.raises(UserError, match='x/model.ckpt-1: has 11 classes, VOC 21; name them by --classes FILE'):
        classes.of_run({}, 11, 'x/model.ckpt-1')
    with pytest.raises(UserError, match='names 2'):
        classes.of_run({}, 3, 'x/model.ckpt-1', write(tmp_path / 'classes.txt', 'sky\ntree'))
    with pytest.raises(UserError, match='x/settings.json: its classes are damaged'):
        classes.of_run({'classes': 'sky'}, 3, 'x/model.ckpt-1')
