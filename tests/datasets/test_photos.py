"""Photos of every kind, drawn here: their pixels, names and places."""
import io

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_photo, encode, with_orientation
from PIL import Image

from datasets import photos
from utils import UserError

# ------------------------------------------------------------------------------------------- reading


def read(data, tmp_path):
    (tmp_path / 'photo').write_bytes(data)
    return photos.read_photo(str(tmp_path / 'photo'))


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
    (b'', 'not an image'), (b'hello', 'not an image'),
    (b'P4\n400000 200000\n', r'400000 x 200000 pixels need 1,220,703 MB of memory, and .* free; scale it down'),
    (b'P5\n4 4\n255\n12', 'image file is truncated'), (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image')])
def test_what_is_no_photo_is_named_with_the_reason(data, reason, tmp_path):
    with pytest.raises(UserError, match=f'photo: {reason}') as raised:
        read(data, tmp_path)
    assert '\n' not in str(raised.value)


def test_a_folder_is_no_photo(tmp_path):
    with pytest.raises(UserError, match=': is not a file$'):
        photos.read_photo(str(tmp_path))


# ------------------------------------------------------------------------------------------- names


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(paths, output_dir='out'):
    """Names by path."""
    return {path: name for path, name in photos.find_photos(paths, output_dir)[0]}


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
    assert 'two/a.jpg: its results are named two/a-3, because two/a is taken' in capsys.readouterr().err
    assert find(['one/a.jpg', 'two/a.jpg', './one/a.jpg']) == {'one/a.jpg': 'a', 'two/a.jpg': 'a-2'}
    touch(tmp_path, 'b.jpg', 'b_confidence.jpg')
    assert find(['b.jpg', 'b_confidence.jpg']) == {'b.jpg': 'b', 'b_confidence.jpg': 'b_confidence-2'}


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
