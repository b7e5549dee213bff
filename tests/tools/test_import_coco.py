import json

import numpy as np
import pytest
from PIL import Image

import convert_fcn_dataset
from datasets import classes, records
from tools import import_coco
from utils import UserError

needs_pycocotools = pytest.mark.skipif(import_coco.COCO is None, reason='pycocotools is not installed')
HEIGHT, WIDTH = 40, 60
PHOTO = {'id': 1, 'file_name': 'photo.jpg', 'height': HEIGHT, 'width': WIDTH}
CATEGORIES = [{'id': 18, 'name': 'dog', 'supercategory': 'animal'}, {'id': 3, 'name': 'traffic light'}]


def box(x, y, width, height):
    """A rectangle as a polygon, whose pixels are those of the slice [y:y + height, x:x + width]."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def run_lengths(mask):
    """Uncompressed run lengths, column by column, of zeros and ones in turn; the first pixel is 0."""
    flat = mask.flatten(order='F')
    edges = [0, *(np.flatnonzero(np.diff(flat.astype(int))) + 1), flat.size]
    return {'size': [HEIGHT, WIDTH], 'counts': np.diff(edges).tolist()}


def thing(number, segmentation, category, image=1, **more):
    return {'id': number, 'image_id': image, 'category_id': category, 'segmentation': segmentation, **more}


@pytest.fixture
def coco(tmp_path):
    """Writes a COCO file of the images photo.jpg and deep/photo.png; a function of annotations to flags."""
    chance = np.random.default_rng(0)
    (tmp_path / 'images' / 'deep').mkdir(parents=True)
    for name in ('photo.jpg', 'deep/photo.png'):
        Image.fromarray(chance.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / 'images' / name)

    def write(annotations, **more):
        images = [PHOTO, PHOTO | {'id': 7, 'file_name': 'deep/photo.png'}]
        content = {'images': images, 'annotations': annotations, 'categories': CATEGORIES, **more}
        (tmp_path / 'coco.json').write_text(json.dumps(content))
        return ['--annotations', str(tmp_path / 'coco.json'), '--images', str(tmp_path / 'images'),
                '--output_dir', str(tmp_path / 'voc')]
    return write


def read_mask(tmp_path, image_id):
    return np.asarray(Image.open(tmp_path / 'voc' / 'SegmentationClass' / f'{image_id}.png'))


@needs_pycocotools
def test_objects_are_drawn_crowds_first_and_small_ones_on_top(coco, tmp_path, capsys):
    crowd = np.zeros((HEIGHT, WIDTH), np.uint8)
    crowd[30:33, 2:50] = 1  # smaller than the traffic light that lies on it
    import_coco.main(coco([
        thing(1, [box(22, 12, 3, 4)], 18, area=12.0), thing(2, [box(10, 5, 30, 20), box(50, 30, 4, 4)], 3),
        thing(3, run_lengths(crowd), 18, iscrowd=1), thing(4, [box(0, 20, 20, 20)], 3),
        thing(5, run_lengths(crowd), 3, image=7), thing(6, [], 18, image=7), thing(7, [[0, 0, 5, 5]], 18, image=7)]))
    expected = crowd * 2
    expected[20:40, 0:20] = 1
    expected[5:25, 10:40] = expected[30:34, 50:54] = 1
    expected[12:16, 22:25] = 2
    np.testing.assert_array_equal(read_mask(tmp_path, 'photo'), expected)
    np.testing.assert_array_equal(read_mask(tmp_path, 'deep_photo'), crowd)
    root = tmp_path / 'voc'
    assert (root / 'ImageSets' / 'Segmentation' / 'train.txt').read_text() == 'photo\ndeep_photo\n'
    assert (root / 'JPEGImages' / 'photo.jpg').read_bytes() == (tmp_path / 'images' / 'photo.jpg').read_bytes()
    assert classes.read_classes(str(root / 'class_names.txt')).names == ('background', 'traffic light', 'dog')
    command = capsys.readouterr().out.splitlines()[-1].partition('convert_fcn_dataset.py ')[2].split()
    convert_fcn_dataset.main([*command, '--output_dir', str(tmp_path / 'records')])
    assert [records.count_examples(str(tmp_path / 'records' / f'fcn_{role}.record')) for role in ('train', 'val')] == [
        1, 1]


@needs_pycocotools
def test_compressed_run_lengths_and_polygons_as_pycocotools_draws_them(coco, tmp_path):
    from pycocotools import mask as coder
    disc = (np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - np.array([20, 30])[:, None, None])) < 12).astype(np.uint8)
    encoded = coder.encode(np.asfortranarray(disc))
    encoded['counts'] = encoded['counts'].decode()
    import_coco.main(coco([thing(1, encoded, 18), thing(2, [[3.5, 4.2, 30.1, 8, 17, 33.3]], 18, image=7)]))
    np.testing.assert_array_equal(read_mask(tmp_path, 'photo'), disc * 2)
    triangle = read_mask(tmp_path, 'deep_photo')
    area = abs((30.1 - 3.5) * (33.3 - 4.2) - (17 - 3.5) * (8 - 4.2)) / 2  # by the cross product
    assert set(np.unique(triangle)) == {0, 2} and abs((triangle == 2).sum() - area) < 20


@needs_pycocotools
def test_a_second_file_joins_if_its_classes_and_images_fit(coco, tmp_path):
    flags = coco([thing(1, [box(1, 1, 20, 20)], 18)])
    import_coco.main(flags)
    with pytest.raises(UserError, match='train.txt exists already: give another --split'):
        import_coco.main(flags)
    with pytest.raises(UserError, match='train.txt: lists an image deep_photo already'):
        import_coco.main([*flags, '--split', 'val'])
    more = [PHOTO | {'file_name': 'other.jpg'}]
    (tmp_path / 'images' / 'other.jpg').write_bytes((tmp_path / 'images' / 'photo.jpg').read_bytes())
    with pytest.raises(UserError, match='number 1 is cat'):
        import_coco.main([*coco([thing(1, [box(1, 1, 9, 9)], 1)], images=more, categories=[{'id': 1, 'name': 'cat'}]),
                          '--split', 'val'])
    import_coco.main([*coco([thing(1, [box(1, 1, 9, 9)], 18)], images=more), '--split', 'val'])
    assert (tmp_path / 'voc' / 'ImageSets' / 'Segmentation' / 'val.txt').read_text() == 'other\n'


@needs_pycocotools
def test_categories_of_background_and_void(coco, tmp_path):
    names = ('_background_', 'Ignore', 'dog')
    import_coco.main(coco([thing(1, [box(0, 0, 9, 9)], 1), thing(2, [box(20, 0, 9, 9)], 2),
                           thing(3, [box(40, 0, 9, 9)], 3)],
                          categories=[{'id': number, 'name': name} for number, name in enumerate(names, start=1)]))
    assert classes.read_classes(str(tmp_path / 'voc' / 'class_names.txt')).names == ('background', 'dog')
    assert read_mask(tmp_path, 'photo')[4, [4, 24, 44]].tolist() == [0, 255, 1]


@needs_pycocotools
def test_images_that_are_links_are_copied_as_files(coco, tmp_path):
    photo = tmp_path / 'images' / 'photo.jpg'
    photo.rename(tmp_path / 'elsewhere.jpg')
    photo.symlink_to(tmp_path / 'elsewhere.jpg')
    import_coco.main(coco([thing(1, [box(1, 1, 20, 20)], 18)]))
    copy = tmp_path / 'voc' / 'JPEGImages' / 'photo.jpg'
    assert not copy.is_symlink() and copy.read_bytes() == photo.read_bytes()


@needs_pycocotools
@pytest.mark.parametrize('annotations, more, said', [
    ([], {}, 'no images, no annotations'), ([{'id': 1}], {}, 'is not a COCO file of objects'),
    ([thing(1, [[1, 2, 3, 4, 'x', 6]], 18)], {}, 'annotation 1 of photo.jpg: cannot be drawn'),
    ([thing(1, [box(1, 1, 5, 5)], 99)], {}, 'annotation 1 of photo.jpg: cannot be drawn'),
    ([thing(1, [[1, 1, 5, float('nan'), 5, 5]], 18)], {}, 'cannot be drawn .*far outside'),
    ([thing(1, {'size': [9, 9], 'counts': [81]}, 18)], {}, 'cannot be drawn .*height and width'),
    ([thing(1, {'size': [HEIGHT, WIDTH], 'counts': 'damaged!'}, 18)], {}, 'annotation 1 of photo.jpg: cannot be drawn'),
    ([thing(1, [], 18)], {}, 'boxes, but no outlines'),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'categories': [{'id': 18}]}, 'name of the entry with id 18 is None'),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'images': [PHOTO | {'height': '40'}]}, "height of the .* id 1 is '40'"),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'categories': [{'id': 18, 'name': 'a' * 99}]}, 'is not a name'),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'categories': [{'id': 18, 'name': 'car, truck'}]},
     "^the category 'car, truck' cannot be in a list of names; rename it"),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'images': [PHOTO | {'file_name': 'gone.jpg'}]}, 'gone.jpg: is not a file'),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'images': [PHOTO | {'file_name': '../coco.json'}]}, 'not a file in the'),
    ([thing(1, [box(1, 1, 5, 5)], 18)], {'images': [PHOTO | {'id': n} for n in (1, 2)]}, 'same name'),
])
def test_what_cannot_be_used_is_one_line(coco, tmp_path, annotations, more, said):
    with pytest.raises(UserError, match=said) as caught:
        import_coco.main(coco(annotations, **more))
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'voc' / 'ImageSets' / 'Segmentation' / 'train.txt').exists()


def test_without_pycocotools_one_line_says_how_to_get_it(coco, monkeypatch):
    monkeypatch.setattr(import_coco, 'COCO', None)
    with pytest.raises(UserError, match='^pycocotools is missing: pip install pycocotools$'):
        import_coco.main(coco([]))


@needs_pycocotools
@pytest.mark.parametrize('content', ['', '[]', '{"images": 3}', '\x00'])
def test_another_file_is_one_line(tmp_path, content):
    (tmp_path / 'coco.json').write_text(content)
    with pytest.raises(UserError, match='coco.json: '):
        import_coco.main(['--annotations', str(tmp_path / 'coco.json'), '--images', str(tmp_path)])
