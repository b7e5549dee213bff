"""predict.py on photos of every kind, drawn here: 12 odd ones, same names, large ones; and its SavedModel."""
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import CAMVID, encode
from PIL import Image

import evaluate
import predict
import train
import utils
from datasets import classes
from inference import crf
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
ORIENTATION = 0x112  # EXIF tag


def draw_photo(height, width, seed=0):
    """A smooth random picture, uint8 RGB [height, width, 3]."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def with_orientation(number):
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


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


@pytest.fixture(scope='session')
def wild(trained, tmp_path_factory):
    """A checkpoint of the narrow network with random skips: it finds many classes, with many borders."""
    path = str(tmp_path_factory.mktemp('wild') / 'wild.ckpt')
    random = np.random.RandomState(0)
    with tf.Graph().as_default(), tf.Session() as session:
        train.load_predictor(session, train.find_checkpoint(str(trained / 'train')))
        kernel = tf.trainable_variables('vgg_16/fc8/conv_pool3/weights')[0]
        session.run(kernel.assign(random.normal(0, 0.1, kernel.shape.as_list())))
        tf.train.Saver(train.network_variables()).save(session, path, write_meta_graph=False)
    return path


@pytest.fixture(scope='module')
def network(wild):
    """Function of one image to the network's probabilities [H, W, C], by nothing but train.py."""
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = train.load_predictor(session, wild)
        yield lambda image: session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]


def run(checkpoint, images, output_dir, *more):
    return predict.main(['--checkpoint_path', str(checkpoint), '--output_dir', str(output_dir), *map(str, more),
                         '--images', *map(str, images)])


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
        image = predict.read_photo(folder / name)
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
    assert any('text.jpg: no image, or of a format that cannot be read' in line for line in skipped)
    assert any('cut.jpg: image file is truncated' in line for line in skipped)
    assert captured.out.splitlines()[-1] == f'photos done: 1, skipped: 3; results in {tmp_path / "out"}'
    assert sorted(os.listdir(tmp_path / 'out')) == ['one.png', 'one_overlay.jpg']


def test_a_photo_beyond_memory_is_skipped(trained, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating')

    monkeypatch.setattr(predict, 'predict', fail)
    Image.fromarray(draw_photo(8, 8)).save(tmp_path / 'a.png')
    assert run(trained / 'train', [tmp_path / 'a.png'], tmp_path / 'out') == 1
    assert 'a.png: out of memory; lower --max_side' in capsys.readouterr().err


def test_a_large_photo_is_scaled_for_the_network_and_its_classes_back(wild, network, tmp_path):
    photo = draw_photo(90, 160)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(wild, [tmp_path / 'a.png'], tmp_path / 'out', '--crf', '--max_side', 40) is None
    seen = predict.shrink(photo, 40)
    assert seen.shape == (22, 40, 3)
    probabilities = network(seen)
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a.png'),
                                  predict.most_probable(probabilities, 90, 160))
    refined = Image.fromarray(crf.refine(seen, probabilities)).resize((160, 90), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(read_labels(tmp_path / 'out' / 'a_crfed.png'), np.array(refined))


def test_the_pngs_give_the_mean_iou_of_evaluate(wild, record, pairs, tmp_path):
    """On the JPEG files of a record, predict.py's PNGs score what evaluate.py finds, to the last pixel."""
    for serialized in tf.io.tf_record_iterator(record):
        features = tf.train.Example.FromString(serialized).features.feature
        name = features['image/filename'].bytes_list.value[0].decode()
        (tmp_path / f'{name}.jpg').write_bytes(features['image/encoded'].bytes_list.value[0])
    assert run(wild, sorted(tmp_path.glob('*.jpg')), tmp_path / 'out') is None

    confusion = np.zeros((21, 21), np.int64)
    for number, (_, label) in enumerate(pairs):
        predicted = read_labels(tmp_path / 'out' / f'image{number}.png')
        np.add.at(confusion, (label[label != 255], predicted[label != 255]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    scored = evaluate.evaluate(train.find_checkpoint(str(wild)), record, with_crf=False).scores['plain']
    np.testing.assert_array_equal(scored.confusion, confusion)
    assert scored.figures()['mean_iou'] == pytest.approx(np.mean((np.diag(confusion) / union)[union > 0]), abs=1e-12)


# ------------------------------------------------------------------------------------------- own classes


def test_a_class_0_that_is_no_background_is_drawn_like_the_others():
    image, labels = np.full((60, 300, 3), 100, np.uint8), np.zeros((60, 300), np.uint8)
    labels[:, 200:] = 10
    overlay = predict.draw_overlay(image, labels, CAMVID)
    assert overlay[30, 100].tolist() == [117, 40, 40] and overlay[30, 250].tolist() == [155, 117, 40]
    for colour in ((128, 0, 0), (192, 128, 0)):  # 60% of these on 40% of 100, above; in the legend as they are
        assert (overlay[60:] == colour).all(axis=-1).sum() >= 15 ** 2
    assert (predict.draw_legend([0], CAMVID, 300, 16) != predict.draw_legend([0], classes.VOC, 300, 16)).any()


def test_photos_in_own_classes(camvid_run, tmp_path):
    photo = draw_photo(48, 70)
    Image.fromarray(photo).save(tmp_path / 'a.png')
    assert run(camvid_run, [tmp_path / 'a.png'], tmp_path / 'out', '--export', tmp_path / 'exported') is None
    with tf.Session() as session:
        predictor = train.load_predictor(session, train.find_checkpoint(str(camvid_run)))
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
    assert (labels == predict.most_probable(mean, 88, 160)).mean() > 0.99  # levels rounded twice, once the other way
    assert (labels == predict.most_probable(network(np.uint8(np.round(seen))), 88, 160)).mean() < 0.99


# ------------------------------------------------------------------------------------------- reading


def read(data, tmp_path):
    (tmp_path / 'photo').write_bytes(data)
    return predict.read_photo(str(tmp_path / 'photo'))


@pytest.mark.parametrize('options', [{'subsampling': subsampling, 'progressive': progressive}
                                     for subsampling in ('4:4:4', '4:2:2', '4:2:0') for progressive in (False, True)])
@pytest.mark.parametrize('size', [(1, 1), (33, 47), (120, 81)])
def test_a_jpeg_gives_the_pixels_of_the_records_decoder(size, options, tmp_path):
    data = encode(draw_photo(*size), format='JPEG', **options)
    with tf.Session() as session:
        decoded = session.run(tf.image.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE'))
    np.testing.assert_array_equal(read(data, tmp_path), decoded)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_upright(orientation, tmp_path):
    photo = draw_photo(20, 30)
    undo = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, -1)}
    stored = undo.get(orientation, np.array)(photo)
    for kind in ('PNG', 'TIFF'):
        data = encode(np.ascontiguousarray(stored), format=kind, exif=with_orientation(orientation))
        np.testing.assert_array_equal(read(data, tmp_path), photo)


def save_as(picture, **options):
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def test_what_is_transparent_lies_on_white(tmp_path):
    photo = draw_photo(10, 12)
    alpha = np.zeros((10, 12), np.uint8)
    alpha[:5] = 255
    expected = np.where(alpha[:, :, np.newaxis] > 0, photo, 255)
    np.testing.assert_array_equal(read(encode(np.dstack([photo, alpha]), format='PNG'), tmp_path), expected)
    np.testing.assert_array_equal(
        read(encode(np.dstack([photo, alpha]), format='WEBP', lossless=True), tmp_path), expected)
    half = np.dstack([np.full((1, 1, 3), 55, np.uint8), np.full((1, 1), 51, np.uint8)])  # a fifth of 55 on white
    assert read(encode(half, format='PNG'), tmp_path).ravel().tolist() == [215, 215, 215]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert('P')
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert read(save_as(palette, format='PNG', transparency=0), tmp_path).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_grey_of_any_depth(tmp_path):
    grey = draw_photo(10, 12)[:, :, 0]
    expected = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(read(encode(grey, format='PNG'), tmp_path), expected)
    for kind in ('PNG', 'TIFF'):
        np.testing.assert_array_equal(read(encode(grey.astype(np.uint16) * 257, format=kind), tmp_path), expected)
    assert read(encode(np.array([[1000, 0]], np.uint16), format='PNG'), tmp_path)[0, :, 0].tolist() == [4, 0]
    assert read(encode(np.array([[-1, 0, 1]], np.float32), format='TIFF'), tmp_path)[0, :, 0].tolist() == [0, 128, 255]
    assert read(encode(np.full((1, 2), 7, np.int32), format='TIFF'), tmp_path).max() == 0
    assert read(save_as(Image.new('1', (2, 1), 1), format='PNG'), tmp_path).tolist() == [[[255] * 3] * 2]


def test_cmyk_palette_and_gif(tmp_path):
    red = Image.new('RGB', (16, 8), (255, 0, 0))
    assert np.abs(read(save_as(red.convert('CMYK'), format='JPEG'), tmp_path).astype(int) - (255, 0, 0)).max() < 4
    assert (read(save_as(red.convert('P'), format='PNG'), tmp_path) == (255, 0, 0)).all()
    moving = save_as(red, format='GIF', save_all=True, append_images=[Image.new('RGB', (16, 8), (0, 0, 255))])
    assert (read(moving, tmp_path) == (255, 0, 0)).all()


@pytest.mark.parametrize('data, reason', [
    (b'', 'no image'), (b'hello', 'no image'), (b'P4\n40000 20000\n', 'more than 178 million pixels; scale it down'),
    (b'P5\n4 4\n255\n12', 'image file is truncated'), (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'no image')])
def test_what_is_no_photo_is_named_with_the_reason(data, reason, tmp_path):
    with pytest.raises(UserError, match=f'photo: {reason}') as raised:
        read(data, tmp_path)
    assert '\n' not in str(raised.value)


def test_a_folder_is_no_photo(tmp_path):
    with pytest.raises(UserError, match=': is no file$'):
        predict.read_photo(str(tmp_path))


# ------------------------------------------------------------------------------------------- names


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(paths, output_dir='out'):
    """Names by path."""
    return {path: name for path, name in predict.find_photos(paths, output_dir)[0]}


def test_a_folder_keeps_its_subfolders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, 'photos/b.JPG', 'photos/a.png', 'photos/x/a.jpg', 'photos/notes.txt', 'photos/.hidden.jpg',
          'photos/.cache/a.jpg', 'photos/out/old.png')
    expected = {'photos/a.png': 'a', 'photos/b.JPG': 'b', 'photos/x/a.jpg': 'x/a'}
    assert find(['photos'], 'photos/out') == find(['photos/', 'photos/b.JPG'], 'photos/out') == expected
    assert list(find(['photos'], 'photos/out')) == list(expected)
    assert find(['photos/notes.txt']) == {'photos/notes.txt': 'notes'}  # named by the user: it is tried


def test_same_names_do_not_meet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, 'one/a.jpg', 'two/a.jpg', 'two/a.png', 'two/a-2.png', 'two/A.gif', 'two/a_crfed.jpg')
    assert find(['one', 'two']) == {'one/a.jpg': 'one/a', 'two/A.gif': 'two/A', 'two/a-2.png': 'two/a-2',
                                    'two/a.jpg': 'two/a-3', 'two/a.png': 'two/a-4', 'two/a_crfed.jpg': 'two/a_crfed-2'}
    assert 'two/a.jpg: its results are called two/a-3, for two/a is taken' in capsys.readouterr().err
    assert find(['one/a.jpg', 'two/a.jpg', './one/a.jpg']) == {'one/a.jpg': 'a', 'two/a.jpg': 'a-2'}


def test_same_names_in_two_folders_are_all_written(trained, tmp_path):
    for folder, size in (('one', (8, 9)), ('two', (10, 11))):
        touch(tmp_path, f'{folder}/a.jpg')
        for ending in ('jpg', 'png'):
            Image.fromarray(draw_photo(*size)).save(tmp_path / folder / f'a.{ending}')
    assert run(trained / 'train', [tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out') is None
    for folder, size in (('one', (8, 9)), ('two', (10, 11))):
        assert sorted(os.listdir(tmp_path / 'out' / folder)) == ['a-2.png', 'a-2_overlay.jpg', 'a.png', 'a_overlay.jpg']
        assert read_labels(tmp_path / 'out' / folder / 'a-2.png').shape == size


def test_photos_are_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, 'a.png', 'b/b.jpg')
    with pytest.raises(UserError, match=r'--output_dir \.: \./a.png is one of the photos; choose another folder'):
        find(['a.png'], '.')
    with pytest.raises(UserError, match='--output_dir b: holds the photos'):
        find(['b'], 'b')
    assert find(['b'], '.') == {'b/b.jpg': 'b'}


def test_no_photo_at_all(tmp_path):
    touch(tmp_path, 'empty/notes.txt')
    with pytest.raises(UserError, match='--images: no photo found .*empty: no image files in this folder; '
                                        'gone.jpg: no such file or folder'):
        find([str(tmp_path / 'empty'), 'gone.jpg'])


# ------------------------------------------------------------------------------------------- scaling, pictures


def test_most_probable_interpolates_between_pixel_centres():
    first = np.array([[1, 0]], np.float32)
    labels = predict.most_probable(np.dstack([first, 0.4 * np.ones_like(first)]), 2, 8)
    # first falls from 1 to 0 between columns 1.5 and 5.5: it is 0.625 in column 3 and 0.375 in column 4.
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2
    probabilities = np.random.RandomState(0).rand(5, 7, 21).astype(np.float32)
    np.testing.assert_array_equal(predict.most_probable(probabilities, 5, 7), probabilities.argmax(axis=-1))
    assert predict.most_probable(probabilities, 40, 20000).shape == (40, 20000)


@pytest.mark.parametrize('size, expected', [((40, 20000), (4, 2048)), ((1, 65535), (1, 2048)), ((4096, 3), (2048, 2)),
                                            ((2048, 2048), (2048, 2048)), ((1, 1), (1, 1))])
def test_shrink_keeps_a_pixel(size, expected):
    assert predict.shrink(np.zeros((*size, 3), np.uint8), 2048).shape == (*expected, 3)


@pytest.mark.parametrize('size', [(1, 1), (300, 400), (400, 60), (4, 2000), (1500, 1600)])
def test_the_legend_names_the_classes(size):
    labels = np.zeros(size, np.uint8)
    labels.flat[:3] = (15, 0, 20) if labels.size > 3 else 15
    image = np.full((*size, 3), 100, np.uint8)
    overlay = predict.draw_overlay(image, labels, classes.VOC)
    legend = overlay.copy()
    legend[:size[0], :size[1]] = 255
    text_size = max(16, round((size[0] * size[1]) ** 0.5 / 40))
    assert (legend == (192, 128, 128)).all(axis=-1).sum() >= (text_size - 1) ** 2
    assert (legend == (0, 64, 128)).all(axis=-1).any() == (labels.size > 3)
    assert (legend < 60).all(axis=-1).sum() > 50  # letters
    photo = overlay[:size[0], :size[1]]
    np.testing.assert_array_equal(photo, utils.overlay(image, labels, utils.voc_palette(), has_background=True))


def test_a_legend_without_classes_says_so():
    def draw(labels):
        return predict.draw_legend(labels, classes.VOC, 300, 16)

    assert (draw([0]) < 60).all(axis=-1).sum() > 50
    assert draw([0, 1]).shape == draw([1]).shape == (32, 300, 3)
    assert draw(range(21)).shape[0] > 100  # wrapped


def test_place_in_rows():
    assert predict.place_in_rows([30, 40, 50, 200, 10], 100, start=5, row_height=20) == [
        (5, 5), (35, 5), (5, 25), (5, 45), (5, 65)]


def test_an_overlay_fits_into_a_jpeg():
    overlay = predict.draw_overlay(np.zeros((2, 65535, 3), np.uint8), np.ones((2, 65535), np.uint8), classes.VOC)
    assert overlay.shape[1] == 60000
    Image.open(io.BytesIO(encode(overlay, format='JPEG'))).load()


# ------------------------------------------------------------------------------------------- export

LOAD_AND_RUN = """
import sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
serve = model.signatures['serving_default']
image = serve.structured_input_signature[1]['image']
assert image.dtype == tf.uint8 and image.shape.as_list() == [None, None, None, 3], image
results = {}
for name, images in np.load(sys.argv[2]).items():
    outputs = serve(image=tf.constant(images))
    assert set(outputs) == {'classes', 'probabilities'}
    results.update({f'{name}_{key}': value.numpy() for key, value in outputs.items()})
np.savez(sys.argv[3], names=sorted(v.name for v in model.variables), **results)
"""


def test_the_export_gives_the_classes_of_predict_py(wild, network, tmp_path):
    images = {f'{height}x{width}': np.stack([draw_photo(height, width, seed) for seed in range(batch)])
              for height, width, batch in ((64, 64, 1), (33, 47, 3), (1, 1, 2), (100, 70, 2))}
    for name, batch in images.items():
        for number, image in enumerate(batch):
            Image.fromarray(image).save(tmp_path / f'{name}_{number}.png')
    assert run(wild, sorted(tmp_path.glob('*.png')), tmp_path / 'out', '--export', tmp_path / 'exported') is None

    np.savez(tmp_path / 'images.npz', **images)
    subprocess.run([sys.executable, '-c', LOAD_AND_RUN, tmp_path / 'exported' / '1', tmp_path / 'images.npz',
                    tmp_path / 'results.npz'], check=True, capture_output=True)
    results = np.load(tmp_path / 'results.npz')
    for name, batch in images.items():
        classes, probabilities = results[f'{name}_classes'], results[f'{name}_probabilities']
        assert classes.dtype == np.uint8 and probabilities.dtype == np.float32
        assert classes.shape == batch.shape[:3] and probabilities.shape == (*batch.shape[:3], 21)
        for number, image in enumerate(batch):
            np.testing.assert_array_equal(classes[number], read_labels(tmp_path / 'out' / f'{name}_{number}.png'))
            np.testing.assert_array_equal(probabilities[number], network(image))
    assert len(np.unique(results['100x70_classes'])) > 3


def test_the_export_is_a_version_folder_of_weights_only(trained, tmp_path, capsys):
    """Twice: a server keeps serving version 1 until 2 is there."""
    touch(tmp_path, '3/something', 'notes')
    for version in ('4', '5'):
        predict.main(['--checkpoint_path', str(trained / 'train'), '--export', str(tmp_path)])
        assert capsys.readouterr().out.splitlines()[-1] == f'exported to {tmp_path / version}'
        assert sorted(os.listdir(tmp_path / version)) == ['assets.extra', 'saved_model.pb', 'variables']
        assert classes.read_classes(tmp_path / version / 'assets.extra' / 'classes.txt') == classes.VOC
    assert sorted(os.listdir(tmp_path)) == ['3', '4', '5', 'notes']
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / '4' / 'variables' / 'variables'))}
    train.build_predictor(train.Network(fc_channels=8))
    assert names == {v.op.name for v in train.network_variables()}
    assert any('Adam' in name for name, _ in tf.train.list_variables(str(trained / 'train')))


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


def test_the_script(trained, tmp_path):
    Image.fromarray(draw_photo(20, 30)).save(tmp_path / 'a.png')
    (tmp_path / 'b.jpg').write_text('no picture')
    done = subprocess.run([sys.executable, str(ROOT / 'predict.py'), '--checkpoint_path', str(trained / 'train'),
                           '--images', 'a.png', 'b.jpg', '--output_dir', 'out', '--export', 'exported'],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'skipped: b.jpg: no image' in done.stderr
    assert done.stdout.splitlines() == ['exported to exported/1', 'photos done: 1, skipped: 1; results in out']
    assert sorted(os.listdir(tmp_path / 'out')) == ['a.png', 'a_overlay.jpg']
