"""predict.py on photos of every kind, drawn here: 12 odd ones, same names, large ones; and its SavedModel."""
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import CAMVID, draw_photo, encode, load_network, with_orientation
from PIL import Image

import evaluate
import predict
import utils
import vgg
from datasets import classes
from datasets.photos import read_photo
from inference import averaging, crf
from inference.weights import find_checkpoint, network_variables
from utils import UserError


def write_odd_photos(folder, photo):
    """Writes the 12 odd photos; returns dict of file name to true (height, width), None for the two that are none."""
    height, width, _ = photo.shape
    picture = Image.fromarray(photo)
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / 'turned.jpg', exif=with_orientation(6))
    picture.convert('CMYK').save(folder / 'cmyk.jpg')
    picture.convert('L').save(folder / 'grey.jpg')
    Image.fromarray(np.dstack([photo, np.full((height, width), 90, np.uint8)])).save(folder / 'rgba.png')
    Image.fromarray(photo[:, :, 1].astype(np.uint16) * 257).save(folder / 'deep.png')
    Image.fromarray(photo[:1, :1]).save(folder / 'one.png')
    picture.resize((20000, 40)).save(folder / 'long.png')
    picture.save(folder / 'moving.gif', save_all=True, append_images=[Image.new('RGB', picture.size)])
    picture.save(folder / 'web.webp')
    (folder / 'cut.jpg').write_bytes(encode(photo, format='JPEG', quality=95)[:-200])
    (folder / 'text.jpg').write_text('not a picture')
    picture.save(folder / '我的 照片.jpg')
    sizes = dict.fromkeys(('turned.jpg', 'cmyk.jpg', 'grey.jpg', 'rgba.png', 'deep.png', 'moving.gif', 'web.webp',
                           '我的 照片.jpg'), (height, width))
    return {**sizes, 'one.png': (1, 1), 'long.png': (40, 20000), 'cut.jpg': None, 'text.jpg': None}


@pytest.fixture(scope='module')
def network(wild):
    """Function of one image to the network's probabilities [H, W, C], computed without predict.py."""
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = load_network(session, wild)
        yield lambda image: session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]


def run(checkpoint, images, output_dir, *more):
    return predict.main(['--checkpoint_path', str(checkpoint), '--output_dir', str(output_dir), *map(str, more),
                         '--images', *map(str, images)])


def enlarge_by_opencv(probabilities, height, width):
    """The most probable classes [height, width] of probabilities [h, w, C]."""
    return np.dstack([cv2.resize(probabilities[:, :, index], (width, height))
                      for index in range(probabilities.shape[-1])]).argmax(axis=-1)


def read_labels(path, palette=classes.VOC.palette):
    """A label map PNG, checked to be in the palette of its classes."""
    picture = Image.open(path)
    assert picture.mode == 'P'
    assert picture.getpalette()[:63] == palette[:21].ravel().tolist()
    return np.array(picture)


# ------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope='module')
def odd_run(wild, tmp_path_factory):
    """The odd photos (see write_odd_photos) through main; returns sizes, folders of photos and results."""
    folder, output = tmp_path_factory.mktemp('odd'), tmp_path_factory.mktemp('results')
    sizes = write_odd_photos(folder, draw_photo(48, 70))
    assert len(sizes) == 12
    assert run(wild, [folder], output, '--crf', '--max_side', 2000) == 1
    return sizes, folder, output


def test_odd_photos_get_pictures_of_their_true_size(odd_run):
    sizes, _, output = odd_run
    done = {name: size for name, size in sizes.items() if size}
    assert sorted(os.listdir(output)) == sorted(
        Path(name).stem + ending for name in done for ending in ('.png', '_crfed.png', '_overlay.jpg'))
    for name, size in done.items():
        stem = Path(name).stem
        assert read_labels(output / f'{stem}.png').shape == read_labels(output / f'{stem}_crfed.png').shape == size
        with Image.open(output / f'{stem}_overlay.jpg') as overlay:
            assert overlay.height > size[0] and overlay.width >= size[1]


def test_odd_photos_get_the_networks_classes(odd_run, network):
    sizes, folder, output = odd_run
    for name in (name for name, size in sizes.items() if size == (48, 70)):
        image = read_photo(folder / name)
        probabilities = network(image)
        labels = read_labels(output / f'{Path(name).stem}.png')
        np.testing.assert_array_equal(labels, probabilities.argmax(axis=-1))
        np.testing.assert_array_equal(read_labels(output / f'{Path(name).stem}_crfed.png'),
                                      crf.refine(image, probabilities))
    assert len(np.unique(labels)) > 3


def test_a_photo_that_cannot_be_read_is_named_and_the_rest_is_done(trained, tmp_path, capsys):
    write_odd_photos(tmp_path, draw_photo(48, 70))
    paths = [tmp_path / name for name in ('text.jpg', 'cut.jpg', 'gone.jpg', 'one.png')]
    assert run(trained / 'train', paths, tmp_path / 'out') == 1
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if 'skipped: ' in line]
    assert len(skipped) == 3
    assert any('gone.jpg: no such file' in line for line in skipped)
    assert any('text.jpg: not an image, or of a format that cannot be read' in line for line in skipped)
    assert any('cut.jpg: image file is truncated' in line for line in skipped)
    assert captured.out.splitlines()[-1] == f'photos done: 1, skipped: 3; results in {tmp_path / "out"}'
    assert sorted(os.listdir(tmp_path / 'out')) == ['one.png', 'one_overlay.jpg']


def test_a_photo_beyond_memory_is_skipped(trained, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')

    monkeypatch.setattr(predict, 'predict', fail)
    Image.fromarray(draw_photo(8, 8)).save(tmp_path / 'a.png')
    assert run(trained / 'train', [tmp_path / 'a.png'], tmp_path / 'out') == 1
    assert 'a.png: out of memory; lower --tile or --max_side' in capsys.readouterr().err


def test_a_large_photo_is_scaled_for_the_network_and_its_classes_back(wild, network, tmp_path):
    photo = draw_photo(90, 160)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(wild, [tmp_path / 'a.png'], tmp_path / 'out', '--crf', '--max_side', 40) is None
    seen = averaging.shrink(photo, 40)
    assert seen.shape == (22, 40, 3)
    probabilities = network(seen)
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a.png'), enlarge_by_opencv(probabilities, 90, 160))
    refined = Image.fromarray(crf.refine(seen, probabilities)).resize((160, 90), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a_crfed.png'), np.array(refined))


@pytest.mark.slow
@pytest.mark.parametrize('tile, overlap', [(1024, 128), (32, 0)])
def test_the_pngs_give_the_mean_iou_of_evaluate(tile, overlap, wild, record, pairs, tmp_path):
    """On the JPEG files of a record, predict.py's PNGs score what evaluate.py finds, to the last pixel."""
    for serialized in tf.io.tf_record_iterator(record):
        features = tf.train.Example.FromString(serialized).features.feature
        name = features['image/filename'].bytes_list.value[0].decode()
        (tmp_path / f'{name}.jpg').write_bytes(features['image/encoded'].bytes_list.value[0])
    assert run(wild, sorted(tmp_path.glob('*.jpg')), tmp_path / 'out', '--tile', tile, '--overlap', overlap) is None

    confusion = np.zeros((21, 21), np.int64)
    for number, (_, label) in enumerate(pairs):
        predicted = read_labels(tmp_path / 'out' / f'image{number}.png')
        np.add.at(confusion, (label[label != 255], predicted[label != 255]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    passes = averaging.Passes(tile=tile, overlap=overlap)
    scored = evaluate.evaluate(find_checkpoint(str(wild)), record, passes=passes).scores['plain']
    np.testing.assert_array_equal(scored.confusion, confusion)
    assert scored.figures()['mean_iou'] == pytest.approx(np.mean((np.diag(confusion) / union)[union > 0]), abs=1e-12)


def test_same_names_in_two_folders_are_all_written(trained, tmp_path):
    for folder, size in (('one', (8, 9)), ('two', (10, 11))):
        (tmp_path / folder).mkdir()
        for ending in ('jpg', 'png'):
            Image.fromarray(draw_photo(*size)).save(tmp_path / folder / f'a.{ending}')
    assert run(trained / 'train', [tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out') is None
    for folder, size in (('one', (8, 9)), ('two', (10, 11))):
        assert sorted(os.listdir(tmp_path / 'out' / folder)) == ['a-2.png', 'a-2_overlay.jpg', 'a.png', 'a_overlay.jpg']
        assert read_labels(tmp_path / 'out' / folder / 'a-2.png').shape == size


# ------------------------------------------------------------------------------------------- own classes


def test_photos_in_own_classes(camvid_run, tmp_path):
    photo = draw_photo(48, 70)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(camvid_run, [tmp_path / 'a.png'], tmp_path / 'out', '--export', tmp_path / 'exported') is None
    with tf.Session() as session:
        predictor = load_network(session, find_checkpoint(str(camvid_run)))
        labels = session.run(predictor.probabilities, {predictor.image: photo[np.newaxis]})[0].argmax(axis=-1)
    assert labels.max() <= 10
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a.png', CAMVID.palette), labels)
    overlay = np.array(Image.open(tmp_path / 'out' / 'a_overlay.jpg')).astype(int)
    assert np.abs(overlay[:48, :70] - photo * 0.4 - CAMVID.palette[labels] * 0.6).mean() < 8  # JPEG
    assert classes.read_classes(tmp_path / 'exported' / '1' / 'assets.extra' / 'classes.txt') == CAMVID


def test_classes_of_another_number_are_named(camvid_run, trained, tmp_path):
    (tmp_path / 'two.txt').write_text('ground\nthing\n')
    Image.fromarray(draw_photo(8, 8)).save(tmp_path / 'a.png')
    for folder, reason in ((camvid_run, 'number 0 is ground; the run of .* number 0 is sky'),
                           (trained, 'number 0 is ground; the run of .* number 0 is background|has 21 classes')):
        with pytest.raises(UserError, match=reason):
            run(folder, [tmp_path / 'a.png'], tmp_path / 'out', '--classes', tmp_path / 'two.txt')
    assert not (tmp_path / 'out').exists()


# ------------------------------------------------------------------------------------------- scales and mirrors


def test_scales_and_mirrors_are_of_the_photo_within_max_side(wild, network, tmp_path):
    """By hand: four predictions at 40 x 22 and 20 x 11 pixels, each mirrored one turned back; Pillow enlarges."""
    photo = draw_photo(88, 160)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(wild, [tmp_path / 'a.png'], tmp_path / 'out', '--max_side', 40, '--scales', '1,0.5', '--flip') is None
    seen = photo.reshape(22, 4, 40, 4, 3).mean(axis=(1, 3))
    mean = 0
    for image in (seen, photo.reshape(11, 8, 20, 8, 3).mean(axis=(1, 3))):
        image = np.uint8(np.round(image))
        both = (network(image) + network(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]) / 2
        mean = mean + np.dstack([np.array(Image.fromarray(each).resize((40, 22), Image.Resampling.BILINEAR))
                                 for each in np.moveaxis(both, -1, 0)]) / 2
    labels = read_labels(tmp_path / 'out' / 'a.png')
    assert (labels == enlarge_by_opencv(mean, 88, 160)).mean() > 0.99  # levels rounded twice, once the other way
    assert (labels == enlarge_by_opencv(network(np.uint8(np.round(seen))), 88, 160)).mean() < 0.99


# ------------------------------------------------------------------------------------------- large photos


@pytest.mark.parametrize('size, expected', [((40, 20000), (4, 2048)), ((1, 65535), (1, 2048)), ((4096, 3), (2048, 2)),
                                            ((2048, 2048), (2048, 2048)), ((1, 1), (1, 1))])
def test_shrink_keeps_a_pixel(size, expected):
    assert averaging.shrink(np.zeros((*size, 3), np.uint8), 2048).shape == (*expected, 3)


def test_windows_that_do_not_advance_are_a_mistake(trained):
    with pytest.raises(ValueError, match='^overlap 128: must be at least 32 below tile 128$'):
        predict.Segmenter(trained / 'train', tile=128)


def test_a_photo_in_tiles(wild, network, tmp_path):
    """Tiles of 32 pixels without overlap are 32 photos, one by one."""
    photo = draw_photo(100, 250)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(wild, [tmp_path / 'a.png'], tmp_path / 'out', '--tile', 32, '--overlap', 0, '--crf') is None
    expected = np.concatenate([np.concatenate([network(photo[top:top + 32, left:left + 32])
                                               for left in range(0, 250, 32)], axis=1) for top in range(0, 100, 32)])
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a.png'), expected.argmax(axis=-1))
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a_crfed.png'), crf.refine(photo, expected))


@pytest.mark.parametrize('border', [0, 99])
def test_tiles_differ_from_one_pass_only_near_their_edges(border, wild, tmp_path):
    """Windows of 512 pixels begin at 0, 288 and 608, so the first alone is seen before 288. The network sees less than
    160 pixels to either side, so what it finds before 288 - 160 is what one pass finds; and after 800 + 160."""
    photo = draw_photo(64, 1100)
    for path in Path(wild).parent.glob('wild.ckpt*'):
        shutil.copy(path, tmp_path)
    utils.save_json(str(tmp_path / 'settings.json'), {'border': border})
    with (predict.Segmenter(str(tmp_path / 'wild.ckpt'), tile=512, overlap=32) as tiled,
          predict.Segmenter(str(tmp_path / 'wild.ckpt')) as complete):
        tiles, once = tiled.probabilities(photo), complete.probabilities(photo)
    for part in (slice(128), slice(960, 1100)):
        np.testing.assert_allclose(tiles[:, part], once[:, part], atol=1e-5)
    assert 0 < np.abs(tiles - once).max() < 0.2


def test_the_crf_sees_a_large_photo_scaled_down(monkeypatch):
    photo, halves = draw_photo(40, 100), np.zeros((40, 100, 2), np.float32)
    halves[:, :30, 0] = halves[:, 30:, 1] = 1
    monkeypatch.setattr(crf, 'MAX_SIDE', 50)
    maps = predict.predict(SimpleNamespace(strips=lambda _: [(0, halves[:7]), (7, halves[7:])]), photo, None,
                           crf.DEFAULTS)
    expected = crf.refine(photo.reshape(20, 2, 50, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8), halves[::2, ::2])
    assert (maps['crfed'] == np.kron(expected, np.ones((2, 2)))).mean() > 0.99
    np.testing.assert_array_equal(maps['plain'], halves.argmax(axis=-1))


@pytest.mark.parametrize('more', [[], ['--max_side', 40], ['--tile', 64, '--overlap', 32]])
def test_confidence_and_probabilities(more, wild, network, tmp_path):
    photo = draw_photo(90, 160)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(wild, [tmp_path / 'a.png'], tmp_path / 'out', '--save_confidence', '--save_probabilities', *more) is None
    assert sorted(os.listdir(tmp_path / 'out')) == ['a.png', 'a_confidence.png', 'a_overlay.jpg', 'a_probabilities.npz']
    saved, confidence = np.load(tmp_path / 'out' / 'a_probabilities.npz'), Image.open(tmp_path / 'out/a_confidence.png')
    assert sorted(saved) == ['classes', 'probabilities'] and saved['classes'].tolist() == list(classes.VOC.names)
    probabilities = saved['probabilities']
    assert probabilities.dtype == np.float16 and probabilities.shape == (90, 160, 21) and confidence.mode == 'L'
    np.testing.assert_allclose(probabilities.sum(axis=-1, dtype=np.float32), 1, atol=2e-3)
    np.testing.assert_allclose(np.array(confidence) / 255, probabilities.max(axis=-1), atol=0.0025)
    chosen = np.take_along_axis(probabilities, read_labels(tmp_path / 'out' / 'a.png')[:, :, np.newaxis], axis=-1)
    np.testing.assert_array_equal(chosen[:, :, 0], probabilities.max(axis=-1))
    if not more:
        np.testing.assert_array_equal(probabilities, network(photo).astype(np.float16))


# ------------------------------------------------------------------------------------------- in Python


@pytest.mark.slow
def test_segmenters_in_threads(wild, trained, network, tmp_path):
    """Two networks in one process, each used by two threads at once; the caller's graph stays empty."""
    photos = [draw_photo(40, 60, seed) for seed in range(4)]
    with predict.Segmenter(wild) as first, predict.Segmenter(str(trained)) as second, ThreadPoolExecutor(4) as pool:
        found = [list(pool.map(segmenter.probabilities, photos)) for segmenter in (first, second)]
        np.testing.assert_array_equal(list(pool.map(first, photos)), [network(each).argmax(axis=-1) for each in photos])
        Image.fromarray(photos[0]).save(tmp_path / 'a.png')
        np.testing.assert_array_equal(first(tmp_path / 'a.png'), first(photos[0]))
        assert first(photos[0]).dtype == np.uint8 and second.class_set == classes.VOC
    np.testing.assert_array_equal(found[0], [network(photo) for photo in photos])
    assert found[0][0].dtype == np.float32 and np.abs(found[0][0] - found[1][0]).max() > 0.01
    assert not tf.get_default_graph().get_operations()


def test_segmenter_averages(wild, network):
    photo = draw_photo(40, 60)
    with predict.Segmenter(wild, flip=True) as segmenter:
        mean = (network(photo) + network(np.ascontiguousarray(photo[:, ::-1]))[:, ::-1]) / 2
        np.testing.assert_allclose(segmenter.probabilities(photo), mean, atol=1e-6)


@pytest.mark.parametrize('image', [np.zeros((4, 5, 3)), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8)])
def test_what_is_not_a_photo_is_named(image):
    found = f'the photo is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3] in RGB'
    with pytest.raises(ValueError, match=re.escape(found)):
        predict.as_photo(image)


@pytest.mark.slow
def test_segmenter_leaves_eager_tensorflow_alone(wild, tmp_path):
    """In a process of its own, as a notebook has it."""
    code = ('import numpy as np, tensorflow as tf, vgg\nbefore = tf.constant([1.0]) * 2\n'
            f'from predict import Segmenter\nvgg.BLOCKS = {vgg.BLOCKS}\n'
            f'labels = Segmenter({str(wild)!r})(np.zeros((8, 9, 3), np.uint8))\n'
            'assert tf.executing_eagerly() and (before * 2).numpy() == 4 and labels.shape == (8, 9)\nprint("done")')
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                         cwd=os.path.dirname(predict.__file__))
    assert ran.stdout == 'done\n', ran.stderr
    assert 'deprecated' not in ran.stderr


# ------------------------------------------------------------------------------------------- export

def test_the_export_gives_the_classes_of_predict_py(wild, network, tmp_path):
    images = {f'{height}x{width}': np.stack([draw_photo(height, width, seed) for seed in range(batch)])
              for height, width, batch in ((64, 64, 1), (33, 47, 3), (1, 1, 2), (100, 70, 2))}
    for name, batch in images.items():
        for number, image in enumerate(batch):
            Image.fromarray(image).save(tmp_path / f'{name}_{number}.png')
    assert run(wild, sorted(tmp_path.glob('*.png')), tmp_path / 'out', '--export', tmp_path / 'exported') is None

    with tf.Session(graph=tf.Graph()) as session:
        loaded = tf.saved_model.load(session, ['serve'], str(tmp_path / 'exported' / '1'))
        signature = loaded.signature_def['serving_default']
        given, fetched = signature.inputs['image'], {name: output.name for name, output in signature.outputs.items()}
        assert given.dtype == tf.uint8 and [dim.size for dim in given.tensor_shape.dim] == [-1, -1, -1, 3]
        assert set(fetched) == {'classes', 'probabilities'}
        results = {name: session.run(fetched, {given.name: batch}) for name, batch in images.items()}
    for name, batch in images.items():
        classes, probabilities = results[name]['classes'], results[name]['probabilities']
        assert classes.dtype == np.uint8 and probabilities.dtype == np.float32
        assert classes.shape == batch.shape[:3] and probabilities.shape == (*batch.shape[:3], 21)
        for number, image in enumerate(batch):
            np.testing.assert_array_equal(classes[number], read_labels(tmp_path / 'out' / f'{name}_{number}.png'))
            np.testing.assert_array_equal(probabilities[number], network(image))
    assert len(np.unique(results['100x70']['classes'])) > 3


@pytest.mark.slow
def test_the_export_is_a_version_folder_of_weights_only(trained, tmp_path, capsys):
    """Twice: a server keeps serving version 1 until 2 is there."""
    (tmp_path / '3').mkdir()
    (tmp_path / 'notes').touch()
    for version in ('4', '5'):
        predict.main(['--checkpoint_path', str(trained / 'train'), '--export', str(tmp_path)])
        assert capsys.readouterr().out.splitlines()[-1] == f'exported to {tmp_path / version}'
        assert sorted(os.listdir(tmp_path / version)) == ['assets.extra', 'saved_model.pb', 'variables']
        assert classes.read_classes(tmp_path / version / 'assets.extra' / 'classes.txt') == classes.VOC
    assert sorted(os.listdir(tmp_path)) == ['3', '4', '5', 'notes']
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / '4' / 'variables' / 'variables'))}
    load_network(tf.Session(), find_checkpoint(str(trained)))
    assert names == {variable.op.name for variable in network_variables()}
    assert any('Adam' in name for name, _ in tf.train.list_variables(str(trained / 'train')))


@pytest.mark.slow
def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(self):
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device\nmore')

    monkeypatch.setattr(tf.saved_model.Builder, 'save', fail)
    with pytest.raises(UserError, match=r'--export .*: cannot be written \(No space left on device\)'):
        predict.main(['--checkpoint_path', str(trained / 'train'), '--export', str(tmp_path / 'exported')])
    assert os.listdir(tmp_path / 'exported') == []


# ------------------------------------------------------------------------------------------- a user's mistakes


@pytest.mark.parametrize('argv, code, message', [
    ([], 2, 'one of the arguments --images and --export is required'),
    (['--images', 'a.jpg', '--max_side', '0'], 2, 'argument --max_side: 0 is not a number from 1 up'),
    (['--images', 'a.jpg', '--tile', '99', '--overlap', '68'], 2, '--overlap 68: must be at least 32 below tile 99'),
    (['--images', 'gone.jpg'], 1, '--images: no photo found (gone.jpg: no such file or folder)'),
    (['--checkpoint_path', 'no.ckpt', '--images', 'a.jpg'], 1, 'no.ckpt: no checkpoint there'),
])
def test_mistakes_end_with_one_line(argv, code, message, trained, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['predict.py', '--checkpoint_path', str(trained / 'train'), *argv])
    with pytest.raises(SystemExit) as ended:
        utils.run_program(predict.main)
    # sys.exit prints a message itself and ends with code 1
    line = capsys.readouterr().err if ended.value.code == 2 else ended.value.code
    assert message in line and line.strip().count('\n') == 0
    assert code == 2 or isinstance(ended.value.code, str)


def test_the_script(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_photo(20, 30)).save(tmp_path / 'a.png')
    (tmp_path / 'b.jpg').write_text('not a picture')
    monkeypatch.setattr(sys, 'argv', ['predict.py', '--checkpoint_path', str(trained / 'train'), '--images', 'a.png',
                                      'b.jpg', '--output_dir', 'out', '--export', 'exported'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(predict.__file__, run_name='__main__')
    captured = capsys.readouterr()
    assert ended.value.code == 1 and 'skipped: b.jpg: not an image' in captured.err
    assert captured.out.splitlines()[3:] == ['exported to exported/1', 'photos done: 1, skipped: 1; results in out']
    assert sorted(os.listdir('out')) == ['a.png', 'a_overlay.jpg']
