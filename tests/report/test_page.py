"""The page from hand-made run folders: what it says, what it survives, and what a real browser makes of it."""
import html.parser
import json
import os
import pathlib
import re
import shutil
import urllib.parse

import pytest
from PIL import Image

from datasets import classes
from report import curves
from report import page as report

LOG = ('step,loss,loss_per_pixel,images_per_second,learning_rate\r\n'
       '1,268.56,3.04452,2.94958,0.0001\r\n10,98.7,1.25678,7.98172,0.0001\r\n')
SCORES = ('step,mean_iou,pixel_accuracy,mean_accuracy,frequency_weighted_iou,boundary_iou,loss_per_pixel\r\n'
          '5,0.31415,0.7,0.5,0.6,0.2,1.5\r\n10,0.27182,0.7,0.5,0.6,0.2,1.4\r\n')
SCRIPT = '<script>document.title = "taken"</script>'


def draw(path, size=(40, 30)):
    """Writes a small picture; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (90, 120, 150)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_metrics(**changes):
    """metrics.json of an evaluation with CRF: aeroplane at IoU 0.25, 0.5 with CRF; sofa absent."""
    metrics = {'mean_iou': 0.61231, 'pixel_accuracy': 0.91232, 'mean_accuracy': 0.71233,
               'frequency_weighted_iou': 0.81234, 'boundary_iou': 0.41235,
               'per_class_iou': {'background': 0.9, 'aeroplane': 0.25, 'sofa': None},
               'per_class_accuracy': {'background': 0.95, 'aeroplane': 0.33333, 'sofa': None},
               'absent_classes': ['sofa'], 'images': 40, 'scorecard': {'split': 'val', 'seed': 7, 'crf': {'steps': 5}},
               'worst': [{'filename': 'photo 1', 'mean_iou': 0.12341, 'crf_mean_iou': 0.12342, 'stem': 'worst_1'}],
               'best': [{'filename': 'photo 2', 'mean_iou': 0.98761, 'crf_mean_iou': 0.98762, 'stem': 'best #1'}]}
    metrics['crf'] = {**metrics, 'mean_iou': 0.65231, 'boundary_iou': 0.40235,
                      'per_class_iou': {'background': 0.92, 'aeroplane': 0.5, 'sofa': None}}
    return {**metrics, **changes}


def make_run(folder, steps=(5, 10), metrics=None, settings=None):
    """A run folder with every file that the page reads; returns its path."""
    write(folder / 'train/log.csv', LOG)
    write(folder / 'train/eval.csv', SCORES)
    write(folder / 'train/settings.json', json.dumps(settings or {'max_steps': 20, 'learning_rate': 0.0001}))
    for step in steps:
        for name in report.VALIDATION_PICTURES:
            draw(folder / f'eval/val_{step}_{name}.jpg')
    for name in report.CROP_PICTURES:
        draw(folder / f'train/crops_{name}.jpg')
    metrics = metrics or make_metrics()
    write(folder / 'evaluation/metrics.json', json.dumps(metrics))
    for entry in metrics['worst'] + metrics['best']:
        for name in report.EVALUATION_PICTURES:
            draw(folder / f'evaluation/{entry["stem"]}_{name}.jpg', size=(30, 60))
    for name in ('confusion', 'confusion_crf'):
        draw(folder / f'evaluation/{name}.png', size=(90, 90))
    return folder


class Page(html.parser.HTMLParser):
    """What a page is made of: its links, the names in it, and its text with runs of white space as one blank."""

    def __init__(self, folder):
        super().__init__()
        self.links, self.ids, self.tags, self.alts, self.parts = [], [], [], [], []
        self.feed(pathlib.Path(report.write_page(str(folder))).read_text(encoding='utf-8'))
        self.text = ' '.join(' '.join(self.parts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ('href', 'src') if name in attributes]
        self.ids += [attributes['id']] if 'id' in attributes else []
        self.alts += [attributes['alt']] if tag == 'img' else []
        self.alts += [attributes['aria-label']] if attributes.get('role') == 'img' else []

    def handle_data(self, data):
        self.parts.append(data)


def check_links(page, folder):
    """Every link leads to a file of the run folder or to a place on the page, and none leaves the disk."""
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith('#'):
            assert urllib.parse.unquote(link[1:]) in page.ids
        elif link != 'data:,':
            assert not re.match('[a-z]+:|/', link)
            assert (folder / urllib.parse.unquote(link)).is_file()


def test_page_shows_the_numbers_of_its_files(tmp_path):
    page = Page(make_run(tmp_path / 'my run'))
    assert 'my run' in page.text
    for tile in ('Step 10 of 20', 'Loss per pixel 1.2568', 'Best validation mean IoU 0.3141 at step 5',
                 'Evaluation mean IoU 0.6123 with CRF 0.6523'):
        assert tile in page.text
    for row in ('Mean IoU 0.6123 0.6523 +0.0400', 'Pixel accuracy 0.9123 0.9123 +0.0000',
                'Boundary IoU (5 px) 0.4123 0.4023 -0.0100', 'aeroplane 0.2500 0.5000 0.3333', 'sofa absent absent –',
                'therefore in no mean: sofa .', 'photo 1 mean IoU 0.1234, with CRF 0.1234', 'photo 2 mean IoU 0.9876',
                'Step 10 validation mean IoU 0.2718', 'split val seed 7 crf steps 5', 'learning_rate 0.0001'):
        assert row.replace(' .', '.') in page.text.replace(' .', '.')
    assert 'Loss per pixel over the steps: training 1.257 at step 10, validation 1.4 at step 10' in page.alts


def test_page_shows_every_picture_and_links_to_nothing_else(tmp_path):
    folder = make_run(tmp_path / 'a run: 100% #1?', steps=(5, 1000, 10))
    page = Page(folder)
    check_links(page, folder)
    assert [name for name in page.ids if re.fullmatch(r'step-\d+', name)] == ['step-1000', 'step-10', 'step-5']
    pictures = {urllib.parse.unquote(link) for link in page.links}
    assert pictures >= {str(path.relative_to(folder)) for path in folder.rglob('*.*g')}  # jpg, png
    assert all(page.alts) and 'Step 10: with CRF' in page.alts
    assert 'script' not in page.tags


def test_legend_names_every_class_in_its_voc_colour(tmp_path):
    page = pathlib.Path(report.write_page(str(make_run(tmp_path)))).read_text()
    assert '"background: rgb(192, 128, 128)"></span>person' in page
    assert '"background: rgb(224, 224, 192)"></span>void' in page
    assert all(f'</span>{name}</li>' in page for name in classes.VOC.names)


OWN = [{'name': 'sky', 'colour': '#0ac8fa'}, {'name': SCRIPT[:60], 'colour': '#5a504a'}]


def test_own_classes_are_listed_in_their_own_colours(tmp_path):
    metrics = make_metrics(per_class_iou={'sky': 0.25, SCRIPT[:60]: None}, crf=None,
                           per_class_accuracy={'sky': 0.5, SCRIPT[:60]: None},
                           scorecard={'classes': ['sky', 'road'], 'settings': {'classes': OWN, 'seed': 7}})
    folder = make_run(tmp_path, metrics=metrics, settings={'max_steps': 20, 'classes': OWN, 'model': 'fcn_16s'})
    page = Page(folder)
    assert 'FCN-16s training run' in page.text
    html = (folder / 'index.html').read_text()
    assert html.count('"background: rgb(10, 200, 250)"></span>sky') == 2  # in the legend, and beside its bar
    assert html.count('"background: rgb(90, 80, 74)"></span>&lt;script&gt;') == 2 and 'script' not in page.tags
    assert '"background: rgb(224, 224, 192)"></span>void' in html and 'aeroplane' not in html
    assert f'classes sky, {SCRIPT[:60]}' in page.text and f'settings classes sky, {SCRIPT[:60]}, seed 7' in page.text


@pytest.mark.parametrize('damaged', [[], [5], [{'name': 'sky'}], [{'name': 'sky', 'colour': '#0000zz'}], OWN * 2])
def test_damaged_classes_are_vocs(tmp_path, damaged):
    write(tmp_path / 'train/settings.json', json.dumps({'classes': damaged}))
    page = Page(tmp_path)
    assert 'aeroplane' in page.text and 'rgb(192, 128, 128)"></span>person' in (tmp_path / 'index.html').read_text()


def test_page_without_crf_has_no_empty_columns(tmp_path):
    metrics = make_metrics(crf=None)
    metrics['worst'][0]['crf_mean_iou'] = None
    folder = make_run(tmp_path, metrics=metrics)
    for path in folder.glob('evaluation/*crf*'):
        path.unlink()
    page = Page(folder)
    check_links(page, folder)
    assert 'Mean IoU 0.6123 Pixel' in page.text and 'aeroplane 0.2500 0.3333' in page.text
    assert 'photo 1 mean IoU 0.1234 ' in page.text and 'change' not in page.text


def test_page_of_a_run_that_has_only_begun_says_what_comes(tmp_path):
    (tmp_path / 'new run').mkdir()
    page = Page(tmp_path / 'new run')
    check_links(page, tmp_path / 'new run')
    assert 'train.py --eval_steps' in page.text and 'evaluate.py --crf' in page.text


def test_names_and_values_are_escaped(tmp_path):
    metrics = make_metrics(per_class_iou={SCRIPT: 0.5}, per_class_accuracy={SCRIPT: 0.5}, absent_classes=[SCRIPT],
                           scorecard={SCRIPT: {SCRIPT: [SCRIPT]}}, crf=None)
    metrics['worst'][0].update(filename=SCRIPT)
    folder = make_run(tmp_path / '<script>run', metrics=metrics, settings={SCRIPT: SCRIPT, 'dataset_val': SCRIPT})
    page = Page(folder)
    check_links(page, folder)
    assert 'script' not in page.tags and page.text.count(SCRIPT) >= 8


DAMAGED = {
    'train/log.csv': ['', 'step', 'nonsense\n1\n', 'step,loss_per_pixel\n1,nan\n2,inf\n', 'step,"loss\n', '\0\n\0',
                      'step\n1\r2\n', LOG + '11,5'],
    'train/eval.csv': ['', 'step,mean_iou\nfive,0.5\n', 'step,mean_iou\n5,\n'],
    'train/settings.json': ['', '[]', '{"a": 1', '"text"'], 'evaluation/metrics.json': ['', '[1]', 'null', '{}'],
    'eval/val_5_img.jpg': ['', 'no picture'], 'eval/val_999_overlay.jpg': ['no picture'],
    'evaluation/confusion.png': ['', '\x89PNG'],
}


@pytest.mark.parametrize('path, content', [(path, text) for path, texts in DAMAGED.items() for text in texts])
def test_damaged_files_are_left_out(tmp_path, path, content):
    folder = make_run(tmp_path / 'run')
    for table in {'train/log.csv', 'train/eval.csv'} - {path}:  # no curves to draw, which takes most of the time
        (folder / table).unlink()
    (folder / path).write_text(content)
    check_links(Page(folder), folder)


@pytest.mark.parametrize('path', DAMAGED)
def test_missing_files_are_left_out(tmp_path, path):
    folder = make_run(tmp_path / 'run', steps=(5, 999))
    (folder / path).unlink()
    check_links(Page(folder), folder)


def test_bytes_that_are_no_text_and_folders_in_place_of_files_are_left_out(tmp_path):
    folder = make_run(tmp_path / 'run')
    (folder / 'train/log.csv').write_bytes(b'step,loss_per_pixel\n1,2\n\xff\xfe\x00,3\n')
    (folder / 'train/settings.json').write_bytes(b'\xff{')
    (folder / 'train/eval.csv').unlink()
    (folder / 'train/eval.csv').mkdir()
    (folder / 'eval/val_77_img.jpg').mkdir()
    page = Page(folder)
    check_links(page, folder)
    assert 'Loss per pixel 2.0000' in page.text and 'Step 77' not in page.text


def test_table_leaves_out_bad_rows_and_keeps_the_later_of_two(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('step,loss\n20,2\n10,1\n30\n,4\n20,2.5\n40,nan\n50,5,5\n60,0.')  # the last line has no end
    assert report.read_table(path) == [{'step': 10, 'loss': 1}, {'step': 20, 'loss': 2.5}, {'step': 40, 'loss': None}]


def test_long_run_makes_no_long_page(tmp_path):
    rows = ''.join(f'{step},{step % 7}\n' for step in range(50000))
    write(tmp_path / 'train/log.csv', 'step,loss_per_pixel\n' + rows)
    for step in range(1, 201):
        draw(tmp_path / f'eval/val_{step}_img.jpg')
    page = Page(tmp_path)
    assert sum(name.startswith('step-') for name in page.ids) == 200
    assert f'{200 - report.OPEN_ROWS} earlier steps' in page.text
    assert (tmp_path / 'index.html').stat().st_size < 1_000_000


def test_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = make_run(tmp_path / 'run')
    before = pathlib.Path(report.write_page(str(folder))).read_text()

    def fail(source, target):
        raise OSError('disk full')

    (folder / 'train/settings.json').write_text('{"learning_rate": 5}')
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        report.write_page(str(folder))
    assert (folder / 'index.html').read_text() == before
    assert not [path for path in folder.rglob('*') if 'partial' in path.name]


def test_page_of_a_real_run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'run')
    page = Page(tmp_path / 'run')
    check_links(page, tmp_path / 'run')
    assert 'Step 3 of 3' in page.text and 'step-2' in page.ids and 'fc_channels 8' in page.text


# ------------------------------------------------------------------------------------------- in a real browser


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Headless Chromium with a profile of its own."""
    if not (shutil.which('chromium') and shutil.which('chromedriver')):
        pytest.skip('no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)')
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for argument in ('headless', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', 'disable-quic', 'no-first-run',
                     'disable-background-networking', 'disable-component-update', 'disable-sync',
                     f'user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        options.add_argument(f'--{argument}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def open_page(browser, path, width, theme='light'):
    """Opens a page from the file system on a screen of that width (a window cannot be as narrow as a phone)."""
    browser.get('about:blank')  # the page of the test before, whose files are gone, must not see the new theme
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                            {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500})
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia',
                            {'features': [{'name': 'prefers-color-scheme', 'value': theme}]})
    for kind in ('browser', 'performance'):
        browser.get_log(kind)
    browser.get(pathlib.Path(path).absolute().as_uri())


LOAD_ALL = """
const [done] = arguments;
document.querySelectorAll('details').forEach(element => element.open = true);
const load = image => { image.loading = 'eager'; return image.decode().catch(() => 0); };
Promise.all([...document.images].map(load)).then(
    () => done([...document.images].map(image => [image.currentSrc, image.naturalWidth])));
"""
WIDTHS = 'return [document.documentElement.scrollWidth, document.documentElement.clientWidth, innerWidth]'


@pytest.mark.parametrize('width, theme', [(1280, 'light'), (390, 'dark')])
def test_browser_shows_every_picture_without_errors(browser, tmp_path, width, theme):
    long_name = 'photo_' + 'x' * 120
    metrics = make_metrics(scorecard={'checkpoint_sha256': 'f' * 64, 'long' * 20: 'name' * 60})
    metrics['worst'][0]['filename'] = long_name
    folder = make_run(tmp_path / 'a run: 100% #1?', steps=range(1, 15), metrics=metrics)
    open_page(browser, report.write_page(str(folder)), width, theme)

    pictures = browser.execute_async_script(LOAD_ALL)
    assert len(pictures) == 14 * 5 + 2 * 6 + 2 + 2 and all(natural_width > 0 for _, natural_width in pictures)
    curve = browser.find_element('css selector', '.curves svg path[style*="--plain"]')
    colour = curves.COLOURS[theme]['plain'][1:]
    assert curve.value_of_css_property('stroke') == f'rgb{tuple(bytes.fromhex(colour))}'
    content_width, page_width, screen_width = browser.execute_script(WIDTHS)
    assert content_width <= page_width and screen_width == width
    assert [entry for entry in browser.get_log('browser') if entry['level'] in ('SEVERE', 'WARNING')] == []
    assert {urllib.parse.urlsplit(url).scheme for url in requested_urls(browser)} <= {'file', 'data'}


def requested_urls(browser):
    """What the page made the browser ask for since it was opened."""
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    return [message['params']['request']['url'] for message in messages
            if message['method'] == 'Network.requestWillBeSent']
