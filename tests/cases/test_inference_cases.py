"""What an ordinary user meets when a network is at work: no pydensecrf, no Chinese font, linked folders, an ASCII
terminal, TensorFlow Lite, 150 classes."""
import importlib.abc
import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow
import tensorflow.compat.v1 as tf
from conftest import draw_photo, load_network
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

import evaluate
import predict
import train
import utils
from datasets import classes, photos
from inference import crf, fonts, legend
from inference.weights import find_checkpoint
from report import evaluation, validation
from tools import compare_recipes, search_crf, write_flags
from utils import UserError

# ------------------------------------------------------------------------------------------- P1: no pydensecrf


class Broken(importlib.abc.MetaPathFinder):
    """As if pydensecrf were not installed, or had been compiled for something else."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name.startswith('pydensecrf'):
            raise self.error


REASONS = (ModuleNotFoundError("No module named 'pydensecrf'"),
           ImportError('libstdc++.so.6: cannot open shared object file'),
           ValueError('numpy.dtype size changed,\nmay indicate binary incompatibility'))
CURE = ('; with Python 3.11 or 3.12 and a C++ compiler (apt install g++), run: pip install -r requirements.txt')


@pytest.fixture(params=REASONS, ids=lambda error: type(error).__name__)
def without_pydensecrf(request, monkeypatch):
    for name in [name for name in sys.modules if name.startswith('pydensecrf')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [Broken(request.param), *sys.meta_path])
    return f'pydensecrf cannot be imported ({" ".join(str(request.param).split())}){CURE}'


@pytest.mark.parametrize('main, argv, user', [
    (evaluate.main, ['--crf'], '--crf'), (predict.main, ['--images', 'a.jpg', '--crf'], '--crf'),
    (search_crf.main, ['--dataset', 'a.record'], 'the search'),
    (compare_recipes.main, ['--data_dir', 'voc'], 'the comparison')])
def test_p1_what_needs_the_crf_ends_at_once_in_one_line(without_pydensecrf, main, argv, user):
    with pytest.raises(UserError) as caught:
        main(argv)
    assert str(caught.value) == f'{user}: {without_pydensecrf}'


@pytest.mark.slow
@pytest.mark.parametrize('without_pydensecrf', REASONS[:1], indirect=True, ids=['missing'])
def test_p1_all_but_the_crf_works(without_pydensecrf, record, tmp_path, capsys):
    train.main(['--dataset_train', record, '--dataset_val', record, '--output_dir', str(tmp_path), '--fc_channels', '8',
                '--batch_size', '2', '--crop_size', '32', '--max_steps', '2', '--val_steps', '1'])
    printed = capsys.readouterr().out
    assert printed.count(f'validation pictures without the CRF: {without_pydensecrf}\n') == 1
    lines = [line for line in printed.splitlines() if line.startswith('  val ')]
    assert len(lines) == 2 and not any('CRF' in line for line in lines)
    names = ('annotation', 'img', 'overlay', 'prediction')
    assert sorted(path.name for path in (tmp_path / 'eval').glob('*.jpg')) == [
        f'val_{step}_{name}.jpg' for step in (1, 2) for name in names]

    checkpoint = ['--checkpoint_path', str(tmp_path / 'train')]
    evaluate.main([*checkpoint, '--dataset', record])
    Image.fromarray(draw_photo(30, 40)).save(tmp_path / 'a.png')
    argv = [*checkpoint, '--images', str(tmp_path / 'a.png'), '--output_dir', str(tmp_path / 'out')]
    assert predict.main(argv) is None
    page = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert 'val_2_overlay.jpg' in page and 'prediction_crfed' not in page


def test_p1_the_drawing_process_needs_no_pydensecrf(tmp_path, monkeypatch):
    (tmp_path / 'pydensecrf.py').write_text('raise ImportError("broken")')
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process gets this path as well
    label, probabilities = np.zeros((8, 9), np.uint8), np.full((8, 9, 21), 1 / 21, np.float32)
    with crf.start_processes(1) as pool:
        assert 'broken' in pool.submit(crf.find_fault).result()
        paths, scores = pool.submit(validation.write_validation, str(tmp_path), 3, draw_photo(8, 9), label,
                                    probabilities, classes.VOC, None).result()
    assert list(paths) == ['img', 'annotation', 'prediction', 'overlay'] and scores == [1.0]


# ------------------------------------------------------------------------------------------- P3: export


@pytest.fixture(scope='module')
def exported(camvid_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    predict.main(['--checkpoint_path', str(camvid_run), '--export', str(folder)])
    return str(folder / '1')


def convert(*arguments):
    """Runs a Python module, as the commands of docs/runs.md do."""
    done = subprocess.run([sys.executable, '-m', *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def load_lite(exported, path):
    convert('tensorflow.lite.python.tflite_convert', '--saved_model_dir', exported, '--saved_model_signature_key',
            'one_image', '--output_file', path)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tensorflow.lite.Interpreter
    return Interpreter(path).get_signature_runner('one_image')


def load_onnx(exported, path):
    pytest.importorskip('tf2onnx', reason='tf2onnx is not installed')
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    convert('tf2onnx.convert', '--saved-model', exported, '--signature_def', 'one_image', '--output', path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {'image': image})))


@pytest.mark.slow
@pytest.mark.parametrize('load', [load_lite, load_onnx])
def test_p3_other_runtimes_give_the_same_classes(exported, camvid_run, tmp_path, load):
    run, found = load(exported, str(tmp_path / 'network')), set()
    with tf.Session() as session:
        predictor = load_network(session, find_checkpoint(str(camvid_run)))
        for size in ((64, 64), (33, 47), (1, 1), (100, 70), (40, 321)):
            image = draw_photo(*size, seed=size[1])[np.newaxis]
            expected, results = session.run(predictor.probabilities, {predictor.image: image}), run(image=image)
            assert results['classes'].dtype == np.uint8 and results['classes'].shape == (1, *size)
            assert (results['classes'] == expected.argmax(axis=-1)).mean() >= 0.9999
            np.testing.assert_allclose(results['probabilities'], expected, atol=1e-3)
            found |= set(np.unique(results['classes']))
    assert len(found) > 3


# ------------------------------------------------------------------------------------------- P4: many classes


def smooth_map(contrast, number_of_classes=150, height=60, width=80, cells=(2, 3), seed=0):
    """A map as an undecided network gives it, of slow changes; and a photo."""
    random = np.random.RandomState(seed)
    scores = contrast * np.dstack([cv2.resize(random.normal(0, 1, cells).astype(np.float32), (width, height),
                                              interpolation=cv2.INTER_CUBIC) for _ in range(number_of_classes)])
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    noise = random.normal(0, 8, (height, width, 3))
    return np.clip(draw_photo(height, width, seed) + noise, 0, 255).astype(np.uint8), probabilities.astype(np.float32)


def refine_with_all_labels(image, probabilities, parameters):
    """pydensecrf's own inference."""
    height, width, number_of_classes = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(np.moveaxis(probabilities, -1, 0))))
    field.addPairwiseGaussian(sxy=parameters.gaussian_xy, compat=parameters.gaussian_compat)
    field.addPairwiseBilateral(sxy=parameters.bilateral_xy, srgb=parameters.bilateral_rgb, rgbim=image,
                               compat=parameters.bilateral_compat)
    return np.array(field.inference(parameters.iterations)).argmax(axis=0).reshape(height, width)


@pytest.mark.parametrize('contrast, number_of_classes', [(0.1, 150), (0.3, 150), (0.6, 150), (1, 150), (2, 150),
                                                         (0.3, 254), (1, 60)])
@pytest.mark.parametrize('parameters', [pytest.param(crf.DEFAULTS, id='ours'), pytest.param(
    search_crf.DEEPLABS, id='DeepLab', marks=pytest.mark.slow)])
def test_p4_undecided_maps_of_many_classes(contrast, number_of_classes, parameters):
    image, probabilities = smooth_map(contrast, number_of_classes)
    refined = crf.refine(image, probabilities, parameters)
    assert (refined == refine_with_all_labels(image, probabilities, parameters)).mean() >= 0.999


@pytest.mark.parametrize('number_of_classes', [2, 21, 22, 34, 60, 150, 254])
def test_p4_the_most_probable_label_of_a_pixel_takes_part(number_of_classes):
    probabilities = np.full((4, 5, number_of_classes), 1 / number_of_classes, np.float32)
    probabilities[:, :, 0] += 0.5 / number_of_classes
    probabilities[2, 3, 0] -= 0.6 / number_of_classes
    probabilities[2, 3, -1] *= 1.001
    assert {0, number_of_classes - 1} <= set(crf.find_labels(probabilities))


def test_p4_a_pool_gives_what_refine_gives():
    image, probabilities = smooth_map(2)
    labels = crf.find_labels(probabilities)
    probabilities[:, :, ::3] *= 1e-4  # so that labels are left out
    assert len(crf.find_labels(probabilities)) < len(labels)
    (_, maps), = crf.refine_all([({'image': image}, probabilities)])
    np.testing.assert_array_equal(maps['crf'], crf.refine(image, probabilities))
    np.testing.assert_array_equal(maps['plain'], probabilities.argmax(axis=-1))


# ------------------------------------------------------------------------------------------- P5: linked folders


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """photos/a.jpg, photos/real/b.jpg, elsewhere/c.jpg."""
    monkeypatch.chdir(tmp_path)
    for path in ('photos/a.jpg', 'photos/real/b.jpg', 'elsewhere/c.jpg'):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


REAL = {'a': 'photos/a.jpg', 'real/b': 'photos/real/b.jpg'}


@pytest.mark.parametrize('links, more', [
    ({'photos/linked': '../elsewhere'}, {'linked/c': 'photos/linked/c.jpg'}),
    ({'photos/first': '../elsewhere', 'photos/second': '../elsewhere'}, {'first/c': 'photos/first/c.jpg'}),
    ({'photos/aaa': 'real'}, {}),
    ({'photos/real/back': '..'}, {}),
    ({'photos/itself': '.'}, {}),
    ({'photos/linked': '../elsewhere', 'elsewhere/back': '../photos'}, {'linked/c': 'photos/linked/c.jpg'}),
    ({'photos/one': '../two', 'two': 'elsewhere'}, {'one/c': 'photos/one/c.jpg'}),
    ({'photos/.hidden': '../elsewhere'}, {}),
    ({'photos/linked.jpg': '../elsewhere'}, {'linked.jpg/c': 'photos/linked.jpg/c.jpg'})])
def test_p5_a_linked_folder_is_searched_once(tree, links, more):
    for path, target in links.items():
        (tree / path).symlink_to(target)
    found, problems = photos.find_photos(['photos'], 'out')
    assert {photo.name: photo.path for photo in found} == {**REAL, **more} and problems == []


@pytest.mark.parametrize('link, target, line', [
    ('photos/gone', 'nowhere', 'photos/gone: a link to nowhere'),
    ('photos/loop', 'loop', 'photos/loop: a link to nowhere'),
    ('photos/up', '../..', 'photos/up: a link to {}, above the folder; name that as --images to search it')])
def test_p5_a_link_that_is_not_followed_is_named(tree, link, target, line):
    (tree / link).symlink_to(target)
    found, problems = photos.find_photos(['photos'], 'out')
    assert {photo.name: photo.path for photo in found} == REAL and problems == [line.format(tree.parent)]


def test_p5_results_behind_a_link_are_no_photos(tree):
    (tree / 'photos/linked').symlink_to('../elsewhere')
    assert {photo.name for photo in photos.find_photos(['photos'], 'elsewhere')[0]} == set(REAL)


# ------------------------------------------------------------------------------------------- other photos and folders


@pytest.mark.parametrize('levels, expected', [
    ([0, 5, np.nan, 10], [0, 128, 0, 255]), ([np.inf, 2, -np.inf, 4], [255, 0, 0, 255]), ([np.nan] * 4, [0] * 4)])
def test_photos_that_were_not_measured_everywhere(tmp_path, levels, expected):
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / 'tile.tif')
    assert photos.read_photo(str(tmp_path / 'tile.tif'))[0, :, 0].tolist() == expected


def test_a_file_name_that_is_not_utf8(trained, tmp_path, monkeypatch):
    picture = tmp_path / os.fsdecode(b'caf\xe9.png')
    Image.fromarray(draw_photo(20, 30)).save(picture)
    (tmp_path / os.fsdecode(b'\xff.jpg')).touch()
    assert run_in(monkeypatch, 'utf-8', lambda: predict.main(
        ['--checkpoint_path', str(trained), '--images', str(tmp_path), '--output_dir', str(tmp_path / 'out')]))[0] == 1
    assert os.listdir(os.fsencode(tmp_path / 'out')) and (tmp_path / 'out' / os.fsdecode(b'caf\xe9.png')).exists()


@pytest.mark.parametrize('main, argv', [(evaluate.main, ['--dataset', 'a.record']),
                                        (predict.main, ['--images', 'a.png'])])
def test_a_read_only_folder_is_named_before_the_work(main, argv, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.png').touch()
    monkeypatch.setattr(os, 'access', lambda *_: False)
    code, _, printed = run_in(monkeypatch, 'utf-8', lambda: main(
        ['--checkpoint_path', str(trained), '--output_dir', 'out', *argv]))
    assert code == 'prog: error: out: is read-only; make it accessible, or name another' and not printed


# ------------------------------------------------------------------------------------------- T10: terminals


def run_in(monkeypatch, encoding, main):
    """run_program on a terminal of an encoding; exit code or message, and what is on stdout and on stderr."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding, errors='strict') for name in ('stdout', 'stderr')}
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, 'argv', ['prog'])
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        utils.run_program(main)
    for stream in streams.values():
        stream.flush()
    return ended.value.code, *(stream.buffer.getvalue().decode(encoding) for stream in streams.values())


@pytest.mark.parametrize('encoding, expected', [
    ('ascii', 'caf\\xe9 \\u72d7 \\U0001f436 \\udcff\n'), ('latin-1', 'café \\u72d7 \\U0001f436 \\udcff\n'),
    ('cp1252', 'café \\u72d7 \\U0001f436 \\udcff\n'), ('gbk', 'café 狗 \\U0001f436 \\udcff\n'),
    ('utf-8', 'café 狗 🐶 \\udcff\n')])
def test_t10_what_a_terminal_lacks_becomes_escapes(monkeypatch, encoding, expected):
    def main():
        for stream in (sys.stdout, sys.stderr):
            print('café 狗 🐶 \udcff', file=stream)

    assert run_in(monkeypatch, encoding, main) == (None, expected, expected)


CHINESE = classes.make_class_set(('背景', '狗', '树', '苹果', '강아지', 'いぬ', '🐶', '八', '九', '十', '十一'))


@pytest.fixture
def chinese_record(camvid_record, tmp_path):
    """The record of CamVid, with Chinese names."""
    record = str(tmp_path / 'chinese.record')
    os.symlink(camvid_record, record)
    stored = classes.read_side_file(camvid_record)
    utils.save_json(classes.side_file(record), {**stored, 'classes': classes.as_json(CHINESE)})
    return record


@pytest.mark.slow
def test_t10_programs_print_chinese_names_as_escapes(chinese_record, tmp_path, monkeypatch):
    out = str(tmp_path / 'out')
    code, printed, _ = run_in(monkeypatch, 'latin-1', lambda: train.main(
        ['--dataset_train', chinese_record, '--dataset_val', chinese_record, '--output_dir', out, '--fc_channels', '8',
         '--batch_size', '2', '--crop_size', '32', '--max_steps', '1', '--val_steps', '1']))
    assert code is None and any(line.startswith('  val ') and '\\u' in line for line in printed.splitlines())
    code, printed, _ = run_in(monkeypatch, 'latin-1', lambda: evaluate.main(
        ['--checkpoint_path', os.path.join(out, 'train'), '--dataset', chinese_record]))
    assert code is None and '\\u80cc\\u666f' in printed


@pytest.mark.parametrize('path', [program.replace('-m benchmarks', 'benchmarks/__main__.py')
                                  for program in write_flags.PROGRAMS])
def test_t10_every_program_starts_so(path):
    with open(os.path.join(os.path.dirname(utils.__file__), path), encoding='utf-8') as file:
        assert 'run_program(main)\n' in file.read().partition("if __name__ == '__main__':")[2]


def test_t10_a_file_name_that_the_system_cannot_express_is_one_line(monkeypatch):
    code, *_ = run_in(monkeypatch, 'utf-8', lambda: '图.jpg'.encode('latin-1'))
    assert code == ('prog: error: 图.jpg: has characters that the encoding of file names here, latin-1, lacks; '
                    'start again with PYTHONUTF8=1')


# ------------------------------------------------------------------------------------------- T11: fonts


def make_font(path, characters, coloured=False):
    """Writes a font whose characters are black squares; of Latin ones it has the space alone."""
    names = ['.notdef', 'space', *(f'glyph{number}' for number in range(len(characters)))]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({32: 'space', **dict(zip(map(ord, characters), names[2:]))})
    builder.setupGlyf({name: square if name.startswith('glyph') else TTGlyphPen(None).glyph() for name in names})
    builder.setupHorizontalMetrics({name: (900, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({'familyName': 'Squares', 'styleName': 'Regular'})
    builder.setupOS2()
    builder.setupPost()
    if coloured:
        builder.setupCPAL([[(1, 0, 0, 1)]])
        builder.setupCOLR({name: [(name, 0)] for name in names[2:]})
    builder.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Which fonts are installed, a list of paths; none at first."""
    paths = []
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: paths)
    fonts.choose.cache_clear()
    yield paths
    fonts.choose.cache_clear()


KINDS = {'Chinese': '狗', 'Korean': '강아지', 'Japanese': 'いぬ', 'Thai': 'หมา', 'Hindi': 'कुत्ता', 'emoji': '🐶',
         'mixed': '狗 🐶'}


@pytest.mark.parametrize('name', KINDS.values(), ids=KINDS)
def test_t11_without_a_font_a_class_is_its_number(name, tmp_path, capsys):
    names = ('background', name)
    for _ in range(2):
        assert fonts.choose(names) == (('background', fonts.DEJAVU), ('1', fonts.DEJAVU))
    printed = capsys.readouterr().err
    assert printed.count('\n') == 1 and f'1 class names, so that pictures show their numbers: 1 {name}; for' in printed

    own, numbered = classes.make_class_set(names), classes.make_class_set(('background', '1'))
    np.testing.assert_array_equal(*(legend.draw_legend([1], each, 200, 20) for each in (own, numbered)))
    for number, each in enumerate((own, numbered)):
        evaluation.draw_confusion(str(tmp_path / f'{number}.png'), np.eye(2, dtype=np.int64), each.names, 'without CRF')
    np.testing.assert_array_equal(*(np.array(Image.open(tmp_path / f'{number}.png')) for number in (0, 1)))


@pytest.mark.parametrize('name', KINDS.values(), ids=KINDS)
def test_t11_a_font_that_is_installed_is_taken(name, tmp_path, installed, capsys):
    installed.append(make_font(tmp_path / 'Some Font.ttf', name.replace(' ', '')))
    class_set = classes.make_class_set(('background', name))
    assert fonts.choose(class_set.names)[1] == (name, installed[0]) and not capsys.readouterr().err
    black = (legend.draw_legend([1], class_set, 300, 20) < 60).all(axis=-1).sum()
    squares = len(name.replace(' ', '')) * 16 ** 2  # 0.8 of 20 pixels
    assert abs(black - squares - 4 * 20) < 0.15 * squares + 10  # and the outline of the class's colour
    evaluation.draw_confusion(str(tmp_path / 'confusion.png'), np.eye(2, dtype=np.int64), class_set.names, 'x')
    fonts.choose.cache_clear()
    installed.clear()
    evaluation.draw_confusion(str(tmp_path / 'numbers.png'), np.eye(2, dtype=np.int64), class_set.names, 'x')
    drawn, numbers = ((np.array(Image.open(tmp_path / name).convert('L')) < 60).sum()
                      for name in ('confusion.png', 'numbers.png'))
    assert drawn > numbers + 100


@pytest.mark.parametrize('name', ['Straße', 'café', 'собака', 'σκύλος', 'كلب', 'כלב', '$x^2$', 'e\u0301'])
def test_t11_other_alphabets_need_no_font(name, capsys):
    assert fonts.choose((name,)) == ((name, fonts.DEJAVU),) and not capsys.readouterr().err


@pytest.mark.parametrize('file_name, options', [('Emoji.ttf', {'coloured': True}), ('LastResort.ttf', {}),
                                                ('damaged.ttf', {})])
def test_t11_fonts_that_cannot_draw_are_passed_over(tmp_path, installed, file_name, options):
    installed.append(make_font(tmp_path / file_name, '🐶', **options))
    if file_name == 'damaged.ttf':
        (tmp_path / file_name).write_bytes(b'\0\1\0\0 no font')
    installed.append(str(tmp_path / 'gone.ttf'))
    assert fonts.choose(('🐶',)) == (('0', fonts.DEJAVU),)


def test_t11_a_regular_font_without_serifs_comes_first(tmp_path, installed):
    for name in ('NotoSansCJK-Bold.ttf', 'NotoSerifCJK-Regular.ttf', 'NotoSansCJK-Regular.ttf', 'NotoSansMono.ttf'):
        installed.append(make_font(tmp_path / name, '狗'))
    assert fonts.choose(('狗',))[0].font == str(tmp_path / 'NotoSansCJK-Regular.ttf')


def test_t11_each_class_has_a_font_of_its_own(tmp_path, installed):
    chinese, korean = (make_font(tmp_path / f'{name}.ttf', KINDS[name]) for name in ('Chinese', 'Korean'))
    installed += [korean, chinese]
    assert fonts.choose(('狗', 'dog', '강아지', 'いぬ')) == (
        ('狗', chinese), ('dog', fonts.DEJAVU), ('강아지', korean), ('3', fonts.DEJAVU))


def test_t11_predict_says_once_which_classes_are_numbers(camvid_run, tmp_path, capsys):
    for number in range(3):
        Image.fromarray(draw_photo(20, 30, number)).save(tmp_path / f'{number}.png')
    (tmp_path / 'classes.txt').write_text(classes.as_text(CHINESE), encoding='utf-8')
    checkpoint = tmp_path / 'model.ckpt-5'
    for path in (camvid_run / 'train').glob('model.ckpt-5.*'):
        (tmp_path / path.name).symlink_to(path)
    assert predict.main(['--checkpoint_path', str(checkpoint), '--classes', str(tmp_path / 'classes.txt'),
                         '--images', str(tmp_path), '--output_dir', str(tmp_path / 'out')]) is None
    listed = ', '.join(f'{number} {name}' for number, name in enumerate(CHINESE.names[:10]))
    assert capsys.readouterr().err.count(f'the characters of 11 class names, so that pictures show their numbers: '
                                         f'{listed}; for') == 1
