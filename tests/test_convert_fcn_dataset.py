"""convert_fcn_dataset.py on VOC folders of a few pixels, drawn here, and on a handful of real VOC pairs."""
import errno
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import limit_file_size
from PIL import Image, JpegImagePlugin

import convert_fcn_dataset as convert
import utils
from datasets import classes
from datasets import voc as voc_folder
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent
REAL_VOC = ROOT.parent / 'shared' / 'voc2012'
RECORDS = ('fcn_train.record', 'fcn_val.record')
WRITTEN = sorted([*RECORDS, *(name + '.json' for name in RECORDS)])
# Written out from VOCcolormap.m's table, so as not to test voc_palette with itself.
COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
MASK = np.array([[0, 0, 1, 255], [2, 15, 20, 255], [0, 0, 0, 15]], np.uint8)  # 3 high, 4 wide


def write_jpeg(path, height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, 'JPEG')


def write_palette_mask(path, mask):
    picture = Image.fromarray(mask)
    picture.putpalette([channel for value in range(256) for channel in COLOURS.get(value, (9, 9, 9))])
    picture.save(path)


def paint(mask):
    """Mask [H, W] to its colours, uint8 [H, W, 3], one pixel at a time."""
    return np.array([[COLOURS[int(value)] for value in row] for row in mask], np.uint8)


def write_split(voc, name, ids):
    (voc / 'ImageSets' / 'Segmentation' / f'{name}.txt').write_text(''.join(f'{image_id}\n' for image_id in ids))


@pytest.fixture
def voc(tmp_path):
    """A VOC folder: train a, b, c and val d, e; every mask is MASK."""
    folder = tmp_path / 'VOC2012'
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (folder / name).mkdir(parents=True)
    for seed, image_id in enumerate('abcde'):
        write_jpeg(folder / 'JPEGImages' / f'{image_id}.jpg', 3, 4, seed)
        write_palette_mask(folder / 'SegmentationClass' / f'{image_id}.png', MASK)
    write_split(folder, 'train', 'abc')
    write_split(folder, 'val', 'de')
    return folder


def jpeg_of(voc, image_id):
    return voc / 'JPEGImages' / f'{image_id}.jpg'


def mask_of(voc, image_id):
    return voc / 'SegmentationClass' / f'{image_id}.png'


def run(voc, *flags):
    """Converts into voc/../out and returns that folder."""
    output_dir = voc.parent / 'out'
    convert.main(['--data_dir', str(voc), '--output_dir', str(output_dir), *flags])
    return output_dir


def read_record(path):
    """The examples of a record: list of {feature name: list of its values}."""
    examples = []
    for serialised in tf.io.tf_record_iterator(str(path)):
        features = tf.train.Example.FromString(serialised).features.feature
        examples.append({name: list(getattr(value, value.WhichOneof('kind')).value)
                         for name, value in features.items()})
    return examples


def label_of(example):
    """uint8 [H, W] of an example, decoded by Pillow; asserts that it is stored as 8-bit grey."""
    picture = Image.open(io.BytesIO(example['image/label'][0]))
    assert (picture.format, picture.mode) == ('PNG', 'L')
    return np.asarray(picture)


def assert_no_records(output_dir):
    assert not output_dir.exists() or os.listdir(output_dir) == []


# ------------------------------------------------------------------------------------------- what a record holds


def test_round_trip_keeps_jpeg_bytes_and_every_label_pixel(voc):
    out = run(voc)
    assert sorted(os.listdir(out)) == WRITTEN
    for record, ids in zip(RECORDS, ('abc', 'de')):
        examples = read_record(out / record)
        assert [example['image/filename'] for example in examples] == [[image_id.encode()] for image_id in ids]
        for image_id, example in zip(ids, examples):
            assert example['image/encoded'] == [jpeg_of(voc, image_id).read_bytes()]
            np.testing.assert_array_equal(label_of(example), MASK)


def test_example_has_exactly_the_features_of_the_schema(voc):
    example = read_record(run(voc) / 'fcn_train.record')[0]
    kinds = {name: type(values[0]) for name, values in example.items()}
    assert kinds == {'image/encoded': bytes, 'image/label': bytes, 'image/height': int, 'image/width': int,
                     'image/filename': bytes, 'image/format': bytes, 'image/label_format': bytes}
    assert (example['image/height'], example['image/width']) == ([3], [4])
    assert (example['image/format'], example['image/label_format']) == ([b'jpeg'], [b'png'])


def test_an_image_of_one_pixel_is_kept(voc):
    write_jpeg(jpeg_of(voc, 'a'), 1, 1)
    write_palette_mask(mask_of(voc, 'a'), np.array([[255]], np.uint8))
    examples = read_record(run(voc) / 'fcn_train.record')
    assert len(examples) == 3
    assert label_of(examples[0]).tolist() == [[255]]


@pytest.mark.parametrize('flags', [['--num_workers', '1'], ['--num_workers', '4']])
def test_same_input_gives_the_same_bytes(voc, flags):
    earlier = [(run(voc, '--num_workers', '2') / name).read_bytes() for name in RECORDS]
    assert [(run(voc, *flags) / name).read_bytes() for name in RECORDS] == earlier


def test_order_is_kept_and_few_results_are_held_with_many_items():
    started = []
    results = voc_folder.map_in_order(lambda number: started.append(number) or number * number, range(1000), 2)
    assert next(results) == 0
    assert len(started) <= 6
    assert list(results) == [number * number for number in range(1, 1000)]


def test_label_dir_of_one_split_leaves_the_other_alone(voc):
    (voc / 'SegmentationClassAug').mkdir()
    for image_id in 'abc':
        mask = np.array([[20] * 4, [1] * 4, [1] * 4], np.uint8)
        write_palette_mask(voc / 'SegmentationClassAug' / f'{image_id}.png', mask)
    write_split(voc, 'trainaug', 'cb')
    out = run(voc, '--train_split', 'trainaug', '--train_label_dir', 'SegmentationClassAug')
    train, val = (read_record(out / name) for name in RECORDS)
    assert [example['image/filename'] for example in train] == [[b'c'], [b'b']]
    assert np.unique(label_of(train[0])).tolist() == [1, 20]
    np.testing.assert_array_equal(label_of(val[0]), MASK)


# ------------------------------------------------------------------------------------------- kinds of masks


@pytest.mark.parametrize('channels', [3, 4])
def test_colour_mask_decodes_to_its_palette_twin(voc, channels):
    pixels = np.dstack([paint(MASK), np.full(MASK.shape, 77, np.uint8)])[:, :, :channels]
    Image.fromarray(pixels).save(mask_of(voc, 'b'))
    palette_twin, coloured, _ = (label_of(example) for example in read_record(run(voc) / 'fcn_train.record'))
    np.testing.assert_array_equal(palette_twin, MASK)
    np.testing.assert_array_equal(coloured, MASK)


@pytest.mark.parametrize('colour', [(1, 2, 3), (255, 255, 255), (192, 64, 128 + 1)])
def test_unknown_colour_names_file_and_colour(voc, capfd, colour):
    pixels = paint(MASK)
    pixels[2, 1] = colour
    Image.fromarray(pixels).save(mask_of(voc, 'b'))
    with pytest.raises(UserError, match='1 of 5 images'):
        run(voc)
    assert f'{mask_of(voc, "b")}: colour {colour} is not in the VOC colour map' in capfd.readouterr().err


def test_grey_masks_of_every_depth_hold_indices(voc):
    Image.fromarray(MASK).save(mask_of(voc, 'a'))
    Image.fromarray(MASK.astype(np.uint16)).save(mask_of(voc, 'b'))
    one_bit = Image.fromarray(MASK == 15)
    assert one_bit.mode == '1'
    one_bit.save(mask_of(voc, 'c'))
    grey, deep, binary = (label_of(example) for example in read_record(run(voc) / 'fcn_train.record'))
    np.testing.assert_array_equal(grey, MASK)
    np.testing.assert_array_equal(deep, MASK)
    assert binary.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def grey_png(width, height, bit_depth, rows):
    """A grey PNG of 1 to 8 bits a pixel from packed rows (bytes), as Pillow does not write them."""
    return png_of(struct.pack('>IIBBBBB', width, height, bit_depth, 0, 0, 0, 0),
                  zlib.compress(b''.join(b'\0' + row for row in rows)))


def png_of(header, *pixels):
    """A PNG of the content of its header chunk and of each chunk of pixels."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + b''.join(chunk(b'IDAT', data) for data in pixels)
            + chunk(b'IEND', b''))


def test_packed_grey_masks_are_not_stretched(voc):
    write_jpeg(jpeg_of(voc, 'a'), 1, 4)
    mask_of(voc, 'a').write_bytes(grey_png(4, 1, 2, [b'\x1b']))  # 00 01 10 11
    write_jpeg(jpeg_of(voc, 'b'), 1, 4)
    mask_of(voc, 'b').write_bytes(grey_png(4, 1, 4, [b'\x01\x7f']))
    two_bits, four_bits, _ = (label_of(example) for example in read_record(run(voc) / 'fcn_train.record'))
    assert two_bits.tolist() == [[0, 1, 2, 3]]
    assert four_bits.tolist() == [[0, 1, 7, 15]]


# ------------------------------------------------------------------------------------------- PNG images


def save_png(voc, image_id, picture, **options):
    """Puts a PIL image in the place of a JPEG; returns its path."""
    jpeg_of(voc, image_id).unlink(missing_ok=True)
    path = voc / 'JPEGImages' / f'{image_id}.png'
    picture.save(path, **options)
    return path


NOISE = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
OPAQUE = np.full((3, 4), 255, np.uint8)


@pytest.mark.parametrize('picture, options', [
    (Image.fromarray(NOISE), {}), (Image.fromarray(NOISE[:, :, 0]), {}), (Image.fromarray(NOISE[:, :, 0] > 99), {}),
    (Image.fromarray(NOISE).quantize(9), {'bits': 4}), (Image.fromarray(NOISE).quantize(12), {}),
    (Image.fromarray(np.dstack([NOISE, OPAQUE])), {}), (Image.fromarray(NOISE[:, :, 0]).convert('LA'), {}),
    (Image.fromarray(NOISE).quantize(12), {'transparency': b'\xff' * 12})])
def test_png_images_go_in_unchanged_and_tensorflow_sees_their_colours(voc, picture, options):
    path = save_png(voc, 'b', picture, **options)
    example = read_record(run(voc) / 'fcn_train.record')[1]
    assert example['image/format'] == [b'png'] and example['image/encoded'] == [path.read_bytes()]
    with tf.Session() as session:
        seen = session.run(tf.io.decode_png(example['image/encoded'][0], channels=3))
    np.testing.assert_array_equal(seen, np.asarray(picture.convert('RGB')))


def test_a_png_image_is_scaled_to_a_jpeg(voc):
    save_png(voc, 'b', Image.new('RGB', (4, 3), (200, 100, 50)))
    example = read_record(run(voc, '--scale', '0.5') / 'fcn_train.record')[1]
    image, sampling = decode(example)
    assert example['image/format'] == [b'jpeg'] and sampling == 0
    np.testing.assert_allclose(image, np.broadcast_to([200, 100, 50], (2, 2, 3)), atol=2)


def test_a_jpeg_may_end_in_jpeg(voc):
    jpeg_of(voc, 'b').rename(voc / 'JPEGImages' / 'b.jpeg')
    assert [example['image/format'] for example in read_record(run(voc) / 'fcn_train.record')] == [[b'jpeg']] * 3


# ------------------------------------------------------------------------------------------- classes of one's own


def own_classes(voc, *lines):
    """--classes with a file of these lines."""
    (voc.parent / 'classes.txt').write_text('\n'.join(lines))
    return '--classes', str(voc.parent / 'classes.txt')


def test_own_classes_bound_the_values_and_name_the_rows(voc, capfd):
    names = [f'a thing of number {number}' for number in range(24)]
    flags = own_classes(voc, *names)
    write_palette_mask(mask_of(voc, 'a'), np.where(MASK == 20, 23, MASK).astype(np.uint8))
    out = run(voc, *flags)
    assert label_of(read_record(out / 'fcn_train.record')[0])[1, 2] == 23
    lines = capfd.readouterr().out.splitlines()
    rows = {line[:21].strip(): line[21:].split() for line in lines}  # the longest name and a space
    assert list(rows) == ['', 'images', *names, 'void'] and {len(line) for line in lines} == {21 + 2 * 26}
    assert rows[names[23]] == ['1', '2.78%', '0', '0.00%'] and rows[names[20]] == ['2', '5.56%', '2', '8.33%']
    with pytest.raises(UserError):
        run(voc, *own_classes(voc, *names[:23]))
    assert f'{mask_of(voc, "a")}: class 23 is neither 0..22 nor 255' in capfd.readouterr().err


def test_colour_masks_are_read_by_the_classes_own_colours(voc, capfd):
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    colours = {0: (1, 2, 3), 1: (255, 0, 16), 2: (192, 128, 128), 255: (224, 224, 192)}
    for image_id in 'abcde':
        write_jpeg(jpeg_of(voc, image_id), 1, 4)
        Image.fromarray(np.array([[colours[value] for value in mask[0]]], np.uint8)).save(mask_of(voc, image_id))
    out = run(voc, *own_classes(voc, 'sky #010203', 'tree #ff0010', 'road #C08080'))
    np.testing.assert_array_equal(label_of(read_record(out / 'fcn_train.record')[0]), mask)
    capfd.readouterr()
    with pytest.raises(UserError, match='^5 of 5 images'):
        run(voc, *own_classes(voc, 'sky #010203', 'tree', 'road #C08080'))
    assert f'{mask_of(voc, "a")}: colour (255, 0, 16) is not in the colour map of --classes\n' in capfd.readouterr().err


def test_side_files_hold_classes_images_and_pixels(voc):
    out = run(voc, *own_classes(voc, 'background', *(f'c{number}' for number in range(1, 21))))
    stored = classes.read_side_file(str(out / 'fcn_train.record'))
    assert stored['classes'].names[:2] == ('background', 'c1') and stored['images'] == 3
    # Three times MASK: five of 0, one of 1, 2 and 20, two of 15 and of 255.
    assert stored['pixels'] == [15, 3, 3, *[0] * 12, 6, *[0] * 4, 3, 6]
    assert classes.of_record(str(run(voc) / 'fcn_val.record')) == classes.VOC


def test_a_bad_file_of_classes_is_one_line_before_any_work(voc):
    with pytest.raises(UserError, match=r'^--classes .*/classes.txt: the name a stands for two classes'):
        run(voc, *own_classes(voc, 'a', 'a'))
    assert_no_records(voc.parent / 'out')


# ------------------------------------------------------------------------------------------- scaling


def decode(example):
    """An example's image, uint8 RGB [H, W, 3], and the way its chroma is stored: Pillow's number, 0 for 4:4:4."""
    picture = Image.open(io.BytesIO(example['image/encoded'][0]))
    return np.asarray(picture.convert('RGB')), JpegImagePlugin.get_sampling(picture)


def test_scaled_pictures_are_area_means_and_nearest_labels(voc):
    """Of 6 x 4 pixels half is 3 x 2: of each 2 x 2 pixels an image's mean; a mask's centre is a corner of four."""
    blocks = np.kron([[0, 100, 200], [250, 50, 150]], np.ones((2, 2))).astype(np.uint8)
    blocks[::2] += 4
    Image.fromarray(blocks).convert('RGB').save(jpeg_of(voc, 'a'), quality=100, subsampling=0)
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    mask[mask > 20] = 255
    write_palette_mask(mask_of(voc, 'a'), mask)
    example = read_record(run(voc, '--scale', '0.5') / 'fcn_train.record')[0]
    image, sampling = decode(example)
    assert (example['image/height'], example['image/width']) == ([2], [3]) and sampling == 0
    np.testing.assert_allclose(image[:, :, 1], [[2, 102, 202], [252, 52, 152]], atol=3)
    assert label_of(example).tolist() == [[7, 9, 11], [19, 255, 255]]


@pytest.mark.parametrize('scale, height, width', [(0.65, 32, 46), (0.9, 45, 63), (1, 50, 70)])
def test_scaled_sides_are_rounded_and_labels_stay_with_the_image(voc, scale, height, width):
    """Where the image's halves meet the mask's do: a grey value's class is that of the pixel below its centre."""
    mask = np.repeat(np.arange(70)[np.newaxis] * 20 // 70, 50, axis=0).astype(np.uint8)
    write_palette_mask(mask_of(voc, 'a'), mask)
    Image.fromarray(mask * 12).save(jpeg_of(voc, 'a'), quality=100)
    example = read_record(run(voc, '--scale', str(scale)) / 'fcn_train.record')[0]
    image, _ = decode(example)
    assert image.shape[:2] == label_of(example).shape == (height, width)
    centres = [int((column + 0.5) * 70 / width) * 20 // 70 for column in range(width)]
    np.testing.assert_array_equal(label_of(example), np.tile(centres, (height, 1)))
    assert np.abs(image[:, :, 0].astype(int) - 12 * label_of(example)).mean() < 6


def test_a_scaled_record_counts_the_scaled_pixels(voc, capfd):
    out = run(voc, '--scale', '0.5')  # 4 x 3 becomes 2 x 2 (1.5 is rounded to even): rows 0 and 2, columns 1 and 3
    stored = classes.read_side_file(str(out / 'fcn_train.record'))
    assert label_of(read_record(out / 'fcn_train.record')[0]).tolist() == [[0, 255], [0, 15]]
    assert stored['pixels'] == [6, *[0] * 14, 3, *[0] * 5, 3]


@pytest.mark.parametrize('scale', ['0', '-1', '1.01', 'nan', 'half', 'inf'])
def test_a_scale_out_of_range_is_refused(capfd, scale):
    with pytest.raises(SystemExit):
        convert.main(['--scale', scale])
    assert f"argument --scale: '{scale}' is not a number above 0 and up to 1" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------- pairs that are no use


def drop_jpeg(voc):
    jpeg_of(voc, 'b').unlink()
    return jpeg_of(voc, 'b'), 'No such file'


def drop_mask(voc):
    mask_of(voc, 'b').unlink()
    return mask_of(voc, 'b'), 'No such file'


def cut_jpeg(voc):
    path = jpeg_of(voc, 'b')
    path.write_bytes(path.read_bytes()[:-20])
    return path, 'truncated'


def cut_large_jpeg(voc):
    path = jpeg_of(voc, 'b')
    write_jpeg(path, 200, 300)
    path.write_bytes(path.read_bytes()[:-100])
    return path, 'truncated'


def cut_mask(voc):
    path = mask_of(voc, 'b')
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b'IDAT') + 6])
    return path, 'Truncated'


def mask_with_wrong_checksum(voc):
    data = grey_png(4, 3, 8, [row.tobytes() for row in MASK])
    end = data.index(b'IEND') - 4  # the length of IEND stands before its name, the checksum of IDAT before that
    mask_of(voc, 'b').write_bytes(data[:end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])
    return mask_of(voc, 'b'), 'checksum'


def empty_jpeg(voc):
    jpeg_of(voc, 'b').write_bytes(b'')
    return jpeg_of(voc, 'b'), 'is not a JPEG file'


def png_as_jpeg(voc):
    shutil.copy(mask_of(voc, 'b'), jpeg_of(voc, 'b'))
    return jpeg_of(voc, 'b'), 'is not a JPEG file'


def jpeg_as_mask(voc):
    shutil.copy(jpeg_of(voc, 'b'), mask_of(voc, 'b'))
    return mask_of(voc, 'b'), 'is not a PNG file'


def other_size(voc):
    write_palette_mask(mask_of(voc, 'b'), MASK.T.copy())
    return mask_of(voc, 'b'), 'is 3 x 4 pixels, its image 4 x 3'


def class_too_high(voc):
    write_palette_mask(mask_of(voc, 'b'), np.where(MASK == 20, 21, MASK).astype(np.uint8))
    return mask_of(voc, 'b'), 'class 21 is neither 0..20 nor 255'


def deep_class_that_wraps_to_0(voc):
    Image.fromarray(np.where(MASK == 20, np.uint16(256), MASK)).save(mask_of(voc, 'b'))
    return mask_of(voc, 'b'), 'class 256 is neither'


def grey_with_alpha(voc):
    Image.fromarray(MASK).convert('LA').save(mask_of(voc, 'b'))
    return mask_of(voc, 'b'), 'mode LA'


def mask_is_a_bomb(voc):
    mask_of(voc, 'b').write_bytes(grey_png(60000, 60000, 8, [b'']))
    return mask_of(voc, 'b'), 'more than 67 million pixels'


def jpeg_is_a_bomb(voc):
    data = bytearray(jpeg_of(voc, 'b').read_bytes())
    size = data.index(b'\xff\xc0') + 5  # marker, length and precision come before height and width
    data[size:size + 4] = b'\xea\x60\xea\x60'
    jpeg_of(voc, 'b').write_bytes(data)
    return jpeg_of(voc, 'b'), 'more than 67 million pixels'


def mask_of_many_pixels(voc):
    """Below Pillow's own limit, and no more than 80 kB; the JPEG is never looked at."""
    Image.new('P', (8192, 8193)).save(mask_of(voc, 'b'))
    return mask_of(voc, 'b'), 'more than 67 million pixels'


def large_file(voc):
    with open(jpeg_of(voc, 'b'), 'ab') as file:
        file.truncate(2 ** 28 + 1)
    return jpeg_of(voc, 'b'), 'is larger than 256 MB'


def pipe(voc):
    jpeg_of(voc, 'b').unlink()
    os.mkfifo(jpeg_of(voc, 'b'))
    return jpeg_of(voc, 'b'), 'is not a file'


def folder_as_mask(voc):
    mask_of(voc, 'b').unlink()
    mask_of(voc, 'b').mkdir()
    return mask_of(voc, 'b'), 'is not a file'


def link_out(voc):
    outside = voc.parent / 'secret.jpg'
    jpeg_of(voc, 'b').rename(outside)
    jpeg_of(voc, 'b').symlink_to(outside)
    return jpeg_of(voc, 'b'), 'is a link that leads out of the data folder'


def relative_mask_link_out(voc):
    mask_of(voc, 'b').rename(voc.parent / 'VOC2012-secret.png')  # the folder's name is a part of this one
    mask_of(voc, 'b').symlink_to('../../VOC2012-secret.png')
    return mask_of(voc, 'b'), 'is a link that leads out of the data folder'


def link_to_itself(voc):
    mask_of(voc, 'b').unlink()
    mask_of(voc, 'b').symlink_to('b.png')
    return mask_of(voc, 'b'), 'Too many levels of symbolic links'


def image_of_16_bits(voc):
    return save_png(voc, 'b', Image.fromarray(MASK.astype(np.uint16))), 'has 16 bits a channel'


def image_with_a_transparent_pixel(voc):
    alpha = OPAQUE.copy()
    alpha[1, 2] = 254
    return save_png(voc, 'b', Image.fromarray(np.dstack([NOISE, alpha]))), 'has transparent pixels'


def image_with_a_transparent_colour(voc):
    return save_png(voc, 'b', Image.fromarray(NOISE), transparency=tuple(map(int, NOISE[0, 0]))), 'transparent pixels'


def image_twice(voc):
    Image.fromarray(NOISE).save(voc / 'JPEGImages' / 'b.png')
    return jpeg_of(voc, 'b'), 'b.png is there as well; keep one of them'


def jpeg_as_png(voc):
    jpeg_of(voc, 'b').rename(voc / 'JPEGImages' / 'b.png')
    return voc / 'JPEGImages' / 'b.png', 'is not a PNG file'


def png_image_cut_short(voc):
    path = save_png(voc, 'b', Image.fromarray(NOISE))
    path.write_bytes(path.read_bytes()[:-30])
    return path, 'runc'


BAD_PAIRS = [image_of_16_bits, image_with_a_transparent_pixel, image_with_a_transparent_colour, image_twice,
             jpeg_as_png, png_image_cut_short,
             mask_of_many_pixels, large_file, pipe, folder_as_mask, link_out, relative_mask_link_out, link_to_itself,
             drop_jpeg, drop_mask, cut_jpeg, cut_large_jpeg, cut_mask, mask_with_wrong_checksum, empty_jpeg,
             png_as_jpeg, jpeg_as_mask, other_size, class_too_high, deep_class_that_wraps_to_0,
             grey_with_alpha, mask_is_a_bomb, jpeg_is_a_bomb]


@pytest.mark.parametrize('spoil', BAD_PAIRS)
def test_bad_pair_is_listed_and_no_record_is_left(voc, capfd, spoil):
    path, reason = spoil(voc)
    with pytest.raises(UserError, match=r'^1 of 5 images cannot be used: mend them or pass --skip_bad$'):
        run(voc)
    listed = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f'{path}: ')]
    assert len(listed) == 1
    assert reason in listed[0]
    assert_no_records(voc.parent / 'out')


@pytest.mark.parametrize('spoil', BAD_PAIRS)
def test_skip_bad_keeps_the_good_pairs(voc, capfd, spoil):
    _, reason = spoil(voc)
    out = run(voc, '--skip_bad')
    assert [example['image/filename'] for example in read_record(out / 'fcn_train.record')] == [[b'a'], [b'c']]
    assert len(read_record(out / 'fcn_val.record')) == 2
    error_lines = capfd.readouterr().err
    assert reason in error_lines
    assert '1 of 5 images left out' in error_lines


def test_every_bad_pair_of_both_splits_is_listed(voc, capfd):
    for image_id in 'acd':
        jpeg_of(voc, image_id).unlink()
    with pytest.raises(UserError, match='^3 of 5 images'):
        run(voc)
    error_lines = capfd.readouterr().err.splitlines()
    assert [line for line in error_lines if line.endswith('No such file or directory')] == [
        f'{jpeg_of(voc, image_id)}: No such file or directory' for image_id in 'acd']


def test_a_split_with_nothing_usable_fails_even_with_skip_bad(voc):
    for image_id in 'de':
        mask_of(voc, image_id).unlink()
    with pytest.raises(UserError, match='val.txt: not one of its images can be used'):
        run(voc, '--skip_bad')
    assert_no_records(voc.parent / 'out')


# ------------------------------------------------------------------------------------------- links that may be


def test_folders_may_be_links_and_files_links_inside_the_data_folder(voc):
    elsewhere = voc.parent / 'elsewhere'
    elsewhere.mkdir()
    plain = [(run(voc) / name).read_bytes() for name in RECORDS]
    for name in ('JPEGImages', 'SegmentationClass'):
        (voc / name).rename(elsewhere / name)
        (voc / name).symlink_to(elsewhere / name)
    mask_of(voc, 'b').rename(voc / 'b.png')
    mask_of(voc, 'b').symlink_to(voc / 'b.png')  # out of the linked folder, into the data folder
    (elsewhere / 'JPEGImages' / 'c.jpg').rename(elsewhere / 'JPEGImages' / 'other.jpg')
    (elsewhere / 'JPEGImages' / 'c.jpg').symlink_to('other.jpg')
    link = voc.parent / 'link'
    link.symlink_to(voc)
    assert [(run(folder) / name).read_bytes() for folder in (voc, link) for name in RECORDS] == plain * 2


# ------------------------------------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize('ids, reason', [
    ('abb', 'holds b more than once'), ('', 'is empty'), (['a', '../../secret'], "'../../secret' is not an id"),
    (['/etc/passwd'], "'/etc/passwd' is not an id"), (['..'], "'..' is not an id"),
    (['x\\y'], 'is not an id'), (['a', '\x1b[2J'], 'is not an id'), (['a' * 201], "aaa' is not an id"),
    ('ad', 'd is in both'), (['a', '\0'], 'is not an id')])
def test_bad_split_file_is_refused_by_name(voc, ids, reason):
    write_split(voc, 'train', ids)
    with pytest.raises(UserError) as caught:
        run(voc)
    assert reason in str(caught.value)
    assert 'train.txt' in str(caught.value)
    assert '\n' not in str(caught.value)
    assert_no_records(voc.parent / 'out')


def test_split_file_may_have_blank_lines_windows_line_ends_and_a_byte_order_mark(voc):
    (voc / 'ImageSets' / 'Segmentation' / 'train.txt').write_bytes(b'\xef\xbb\xbfa\r\n\r\nc \r\n')
    names = [example['image/filename'] for example in read_record(run(voc) / 'fcn_train.record')]
    assert names == [[b'a'], [b'c']]


def test_split_file_that_is_no_text_is_refused(voc):
    (voc / 'ImageSets' / 'Segmentation' / 'train.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match='train.txt: is not UTF-8 text; name a list'):
        run(voc)


def test_split_file_that_is_a_pipe_is_refused(voc):
    path = voc / 'ImageSets' / 'Segmentation' / 'train.txt'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match='train.txt: is not a file; name a list of one image id a line by --train'):
        run(voc)


@pytest.mark.parametrize('flags, named', [
    (['--train_split', 'trian'], r'trian\.txt.*--train_split'), (['--val_split', 'vla'], r'vla\.txt.*--val_split'),
    (['--val_label_dir', 'Masks'], 'Masks.*--val_label_dir'),
    (['--data_dir', '/none/such'], '/none/such is not a folder.*--data_dir')])
def test_missing_folder_or_list_names_the_flag(voc, flags, named):
    with pytest.raises(UserError, match=named):
        run(voc, *flags)
    assert_no_records(voc.parent / 'out')


def test_output_dir_that_is_a_file_is_refused(voc):
    (voc.parent / 'out').write_text('')
    with pytest.raises(FileExistsError, match='out'):
        run(voc)




# ------------------------------------------------------------------------------------------- writing that fails


@pytest.mark.parametrize('error, raised', [
    (tf.errors.ResourceExhaustedError(None, None, 'fcn_train.record; No space left on device'), OSError),
    (KeyboardInterrupt(), KeyboardInterrupt)])
def test_failed_writing_leaves_earlier_records_and_no_temporary_file(voc, monkeypatch, error, raised):
    out = run(voc)
    earlier = [(out / name).read_bytes() for name in WRITTEN]
    write_split(voc, 'train', 'ab')

    class FullDisk(tf.io.TFRecordWriter):
        def write(self, example):
            if b'b' in tf.train.Example.FromString(example).features.feature['image/filename'].bytes_list.value:
                raise error
            super().write(example)

    monkeypatch.setattr(tf.io, 'TFRecordWriter', FullDisk)
    with pytest.raises(raised) as caught:
        run(voc)
    if raised is OSError:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(out / 'fcn_train.record'))
    assert sorted(os.listdir(out)) == WRITTEN
    assert [(out / name).read_bytes() for name in WRITTEN] == earlier


def test_a_full_disk_leaves_nothing(voc):
    """A limit on the size of files stands for a full disk; so small a record only meets it when it is closed."""
    with limit_file_size(1024), pytest.raises(OSError, match="File too large: .*/fcn_train.record'"):
        run(voc)
    assert_no_records(voc.parent / 'out')


def test_a_side_file_that_cannot_be_written_leaves_no_record(voc, monkeypatch):
    def fail(path, *_):
        raise OSError(28, 'No space left on device', path)

    monkeypatch.setattr(classes, 'save_side_file', fail)
    with pytest.raises(OSError, match="No space left on device: .*/fcn_train.record.json'"):
        run(voc)
    assert_no_records(voc.parent / 'out')


def test_bad_second_split_leaves_both_earlier_records(voc):
    out = run(voc)
    earlier = [(out / name).read_bytes() for name in WRITTEN]
    write_split(voc, 'train', 'ab')
    mask_of(voc, 'e').unlink()
    with pytest.raises(UserError):
        run(voc)
    assert sorted(os.listdir(out)) == WRITTEN
    assert [(out / name).read_bytes() for name in WRITTEN] == earlier


# ------------------------------------------------------------------------------------------- what the user sees


def test_table_counts_images_pixels_and_void(voc, capfd):
    run(voc)
    output = capfd.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in output.out.splitlines()}
    assert output.out.splitlines()[0].split() == list(RECORDS)
    assert rows['images'] == ['3', '2']
    # MASK has 12 pixels: five of 0, one of 1, 2 and 20, two of 15 and of 255.
    assert rows['background'] == ['15', '41.67%', '10', '41.67%']
    assert rows['person'] == ['6', '16.67%', '4', '16.67%']
    assert rows['tvmonitor'] == ['3', '8.33%', '2', '8.33%']
    assert rows['cat'] == ['0', '0.00%', '0', '0.00%']
    assert rows['void'] == ['6', '16.67%', '4', '16.67%']
    assert len(rows) == 24  # records, images, 21 classes, void
    assert 'fcn_train.record: 100%' in output.err and '3/3' in output.err


def test_program_converts_and_ends_with_0(voc):
    out = voc.parent / 'made' / 'on the way'
    done = subprocess.run([sys.executable, 'convert_fcn_dataset.py', '--data_dir', voc, '--output_dir', out,
                           '--num_workers', '2'], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    in_this_process = run(voc, '--num_workers', '1')
    for name in RECORDS:
        assert (out / name).read_bytes() == (in_this_process / name).read_bytes()
    assert done.stdout.splitlines()[1].split() == ['images', '3', '2']


def test_a_mistake_ends_with_one_line_and_1(voc, monkeypatch, capfd):
    mask_of(voc, 'b').unlink()
    monkeypatch.setattr(sys, 'argv', ['convert_fcn_dataset.py', '--data_dir', str(voc), '--output_dir',
                                      str(voc.parent / 'out')])
    with pytest.raises(SystemExit) as ended:
        utils.run_program(convert.main)
    assert ended.value.code == ('convert_fcn_dataset.py: error: 1 of 5 images cannot be used: mend them or pass '
                                '--skip_bad')
    assert_no_records(voc.parent / 'out')


@pytest.mark.parametrize('flags', [['--ouput_dir', 'x'], ['--num_workers', '0'], ['--num_workers', 'many'],
                                   ['--skip']])
def test_bad_flag_ends_with_one_line_that_names_it(capfd, flags):
    with pytest.raises(SystemExit) as caught:
        convert.main(flags)
    assert caught.value.code == 2
    error_lines = capfd.readouterr().err
    assert error_lines.count('\n') == 1
    assert flags[0] in error_lines


def test_defaults_are_the_folders_of_the_readme():
    args = convert.parse_args([])
    assert (args.data_dir, args.output_dir) == (os.path.join('VOCdevkit', 'VOC2012'), 'data')
    assert (args.train_split, args.val_split, args.skip_bad) == ('train', 'val', False)
    assert (args.train_label_dir, args.val_label_dir) == ('SegmentationClass', 'SegmentationClass')


# ------------------------------------------------------------------------------------------- real pictures


@pytest.mark.skipif(not REAL_VOC.is_dir(), reason=f'{REAL_VOC} is missing')
def test_real_voc_pairs(tmp_path):
    folder = tmp_path / 'VOC2012'
    (folder / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    for name in ('JPEGImages', 'SegmentationClass'):
        (folder / name).symlink_to(REAL_VOC / name)
    ids = {}
    for split, count in (('train', 8), ('val', 4)):
        ids[split] = (REAL_VOC / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text().split()[:count]
        write_split(folder, split, ids[split])
    out = run(folder)
    for record, split in zip(RECORDS, ('train', 'val')):
        examples = read_record(out / record)
        assert len(examples) == len(ids[split])
        for image_id, example in zip(ids[split], examples):
            mask = np.asarray(Image.open(mask_of(REAL_VOC, image_id)))
            assert 255 in mask
            np.testing.assert_array_equal(label_of(example), mask)
            assert example['image/encoded'] == [jpeg_of(REAL_VOC, image_id).read_bytes()]
