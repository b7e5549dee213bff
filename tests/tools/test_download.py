"""Tests of tools/download.py against a server on this machine, with files in the layout of the published ones."""
import contextlib
import errno
import functools
import gzip
import hashlib
import http.server
import io
import os
import re
import tarfile
import threading

import caffe_files
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, mount_disk
from vgg_files import for_bgr, make_narrow, random_arrays, read_shapes, run_vgg, slim_variables, write_published

import convert_fcn_dataset
import train
import utils
import vgg
from datasets import records
from inference import weights
from tools import download

CONTENT = np.random.default_rng(0).bytes(3_000_000)


# ------------------------------------------------------------------------------------------- the server


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what its server's `files` has, in the way that its `faults` ask for."""

    def do_GET(self):
        """One answer, of the bytes that are asked for."""
        server, name = self.server, self.path.lstrip('/')
        server.asked.append((name, self.headers.get('Range')))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int) or name not in server.files:
            self.send_response(fault or 404)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = server.files[name]
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(asked[1]) if asked and server.has_ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.end_headers()
            return
        self.send_response(206 if asked and server.has_ranges else 200)
        if asked and server.has_ranges:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        if server.encoding:
            self.send_header('Content-Encoding', server.encoding)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        end = start + int(fault.removeprefix('break after ')) if fault else len(content)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[start:end])

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def server():
    """A server with `files`, dict of names to bytes; `faults`, of the next answers: a code of HTTP, 'break after N', or
    None; and `asked`, the (name, Range) of all requests."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as started:
        started.files, started.faults, started.asked = {}, [], []
        started.has_ranges, started.lie, started.encoding = True, 0, None
        started.url = f'http://127.0.0.1:{started.server_port}'
        thread = threading.Thread(target=functools.partial(started.serve_forever, poll_interval=0.02))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nobody waits between attempts."""
    monkeypatch.setattr(download, 'WAIT_SECONDS', 0)


@pytest.fixture
def published(server):
    """A file of CONTENT on the server, as a Published."""
    server.files['a.tar'] = CONTENT
    return download.Published('a.tar', f'{server.url}/a.tar', hashlib.md5(CONTENT).hexdigest())


def free_port():
    """An address where nobody answers."""
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as closed:
        return f'http://127.0.0.1:{closed.server_port}'


# ------------------------------------------------------------------------------------------- one file


def test_a_whole_file(server, published, tmp_path, capsys):
    path = download.fetch(published, str(tmp_path))
    assert path == str(tmp_path / 'a.tar') and (tmp_path / 'a.tar').read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ['a.tar'] and server.asked == [('a.tar', None)]
    assert '3.00M/3.00M' in capsys.readouterr().err
    assert download.fetch(published, str(tmp_path)) == path and len(server.asked) == 1  # it is there


def test_a_broken_transfer_goes_on(server, published, tmp_path, capsys):
    server.faults = ['break after 1000000', 'break after 500000']
    download.fetch(published, str(tmp_path))
    assert (tmp_path / 'a.tar').read_bytes() == CONTENT
    assert server.asked == [('a.tar', None), ('a.tar', 'bytes=1000000-'), ('a.tar', 'bytes=1500000-')]
    assert capsys.readouterr().out == 'a.tar: the connection broke off; trying again\n' * 2


def test_the_next_run_goes_on(server, published, tmp_path):
    server.faults = ['break after 1000000'] + [503] * download.ATTEMPTS
    with pytest.raises(download.UnreachableError, match='answered 503; start again later to resume'):
        download.fetch(published, str(tmp_path))
    assert os.listdir(tmp_path) == ['a.tar.part'] and len(server.asked) == download.ATTEMPTS
    server.faults, server.asked[:] = [], []
    download.fetch(published, str(tmp_path))
    assert server.asked == [('a.tar', 'bytes=1000000-')] and (tmp_path / 'a.tar').read_bytes() == CONTENT


def test_as_many_breaks_as_there_are_while_bytes_come(server, published, tmp_path):
    server.faults = ['break after 300000'] * 9
    download.fetch(published, str(tmp_path))
    assert server.asked[-1] == ('a.tar', 'bytes=2700000-') and (tmp_path / 'a.tar').read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, published, tmp_path, capsys):
    server.has_ranges, server.faults = False, ['break after 1000000']
    download.fetch(published, str(tmp_path))
    assert (tmp_path / 'a.tar').read_bytes() == CONTENT
    assert server.asked == [('a.tar', None), ('a.tar', 'bytes=1000000-')]
    assert 'the server cannot resume from 1,000,000 bytes' in capsys.readouterr().out


def test_a_server_without_ranges_that_always_breaks_is_given_up(server, published, tmp_path):
    server.has_ranges, server.faults = False, ['break after 1000000'] * 50
    with pytest.raises(download.UnreachableError, match='broke off'):
        download.fetch(published, str(tmp_path))
    assert len(server.asked) == download.ATTEMPTS and os.listdir(tmp_path) == ['a.tar.part']


def test_a_part_that_is_whole_is_only_checked(server, published, tmp_path):
    (tmp_path / 'a.tar.part').write_bytes(CONTENT)
    download.fetch(published, str(tmp_path))
    assert server.asked == [('a.tar', 'bytes=3000000-')] and os.listdir(tmp_path) == ['a.tar']


def test_a_part_of_another_file_fails_by_its_checksum(published, tmp_path):
    (tmp_path / 'a.tar.part').write_bytes(bytes(1000))
    with pytest.raises(utils.UserError, match='a.tar.part: its MD5 is not [0-9a-f]{32}; remove it and start again'):
        download.fetch(published, str(tmp_path))


def test_a_part_that_is_too_long_for_a_server_with_ranges_fails_by_its_checksum(published, tmp_path):
    (tmp_path / 'a.tar.part').write_bytes(bytes(3_000_001))
    with pytest.raises(utils.UserError, match='a.tar.part: its MD5 is not [0-9a-f]{32}; remove it and start again'):
        download.fetch(published, str(tmp_path))


def test_a_part_that_is_too_long_is_kept(server, published, tmp_path):
    """A gateway may answer with a page of its own: for that, no gigabytes are given up."""
    server.has_ranges = False
    (tmp_path / 'a.tar.part').write_bytes(bytes(3_000_001))
    with pytest.raises(download.UnreachableError, match='a.tar.part: remove that, or name another'):
        download.fetch(published, str(tmp_path))
    assert os.listdir(tmp_path) == ['a.tar.part']


def test_a_wrong_checksum(server, published, tmp_path):
    server.files['a.tar'] = CONTENT[:-1] + b'?'
    with pytest.raises(utils.UserError) as caught:
        download.fetch(published, str(tmp_path))
    assert str(caught.value) == (f'{tmp_path}/a.tar.part: its MD5 is not {published.md5}; remove it and start again, '
                                 f'or name another address than {published.url}')
    assert not isinstance(caught.value, download.UnreachableError) and os.listdir(tmp_path) == ['a.tar.part']


def test_a_wrong_file_of_the_users_own_stays(server, published, tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'mine')
    with pytest.raises(utils.UserError, match='a.tar: its MD5 is not .*; remove it'):
        download.fetch(published, str(tmp_path))
    assert (tmp_path / 'a.tar').read_bytes() == b'mine' and server.asked == []


def test_an_archive_that_the_server_calls_encoded_stays_as_it_is(server, tmp_path):
    packed = gzip.compress(CONTENT)
    server.files['a.tar.gz'], server.encoding = packed, 'gzip'
    published = download.Published('a.tar.gz', f'{server.url}/a.tar.gz', hashlib.md5(packed).hexdigest())
    download.fetch(published, str(tmp_path))
    assert (tmp_path / 'a.tar.gz').read_bytes() == packed


@pytest.mark.parametrize('url, words', [
    ('{server}/none.tar', '404 Not Found'), ('{closed}/a.tar', 'Connection refused; start again later'),
    ('ftp://127.0.0.1/a.tar', 'name another address'), ('a.tar', 'name another address'),
    ('http://', 'name another address')])
def test_an_address_without_a_file(server, published, tmp_path, url, words):
    wrong = published._replace(url=url.format(server=server.url, closed=free_port()))
    with pytest.raises(download.UnreachableError) as caught:
        download.fetch(wrong, str(tmp_path))
    assert str(caught.value).startswith(f'{wrong.url}: ') and words in str(caught.value)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400 and os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_came(server, published, tmp_path):
    (tmp_path / 'disk').mkdir()
    with mount_disk(tmp_path / 'disk', 2 ** 21):
        with pytest.raises(OSError) as caught:
            download.fetch(published, str(tmp_path / 'disk'))
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / 'disk' / 'a.tar.part')
        assert len(server.asked) == 1
        kept = (tmp_path / 'disk' / 'a.tar.part').read_bytes()
    assert len(kept) > 2 ** 20 and CONTENT.startswith(kept)


# ------------------------------------------------------------------------------------------- archives


def make_tar(members, mode='w'):
    """Bytes of an archive; members: dict of names to bytes, or to a tarfile.TarInfo's attributes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content.get('type', tarfile.DIRTYPE), content.get('linkname', '')
                archive.addfile(member)
    return file.getvalue()


def voc_members():
    """VOC2012 as VOCtrainval_11-May-2012.tar has it, with two images, and with folders that nobody needs here."""
    root = 'VOCdevkit/VOC2012'
    members = {'VOCdevkit': {}, root: {}, f'{root}/Annotations': {}, f'{root}/Annotations/2007_000032.xml': b'<a/>',
               f'{root}/ImageSets/Main/aeroplane_train.txt': b'2007_000032  1\n',
               f'{root}/ImageSets/Segmentation/train.txt': b'2007_000032\n',
               f'{root}/ImageSets/Segmentation/val.txt': b'2007_000033\n',
               f'{root}/ImageSets/Segmentation/trainval.txt': b'2007_000032\n2007_000033\n',
               f'{root}/SegmentationObject/2007_000032.png': b'png'}
    for number, name in enumerate(('2007_000032', '2007_000033')):
        image, label = draw_pair(64, 64, number)
        members[f'{root}/JPEGImages/{name}.jpg'] = encode(image, format='JPEG')
        members[f'{root}/SegmentationClass/{name}.png'] = encode(label, format='PNG')
    return members


def put(server, monkeypatch, constant, content):
    """Has the server hold a published file, and download.py know its checksum."""
    published = getattr(download, constant)
    server.files[published.name] = content
    md5 = hashlib.md5(content).hexdigest() if published.md5 else None
    monkeypatch.setattr(download, constant, published._replace(md5=md5, url=f'{server.url}/{published.name}'))


def addresses(server):
    """The flags that have download.py ask this server alone."""
    return [f'--{word}_url={server.url}/{getattr(download, word.upper()).name}' for word in ('voc', 'keras', 'slim')]


def files_below(folder):
    return sorted(os.path.relpath(os.path.join(here, name), folder) for here, _, names in os.walk(folder)
                  for name in names)


def test_voc_is_unpacked_as_far_as_it_is_needed(server, tmp_path, monkeypatch, capsys):
    members = voc_members()
    put(server, monkeypatch, 'VOC', make_tar(members))
    flags = ['--what', 'voc', '--output_dir', str(tmp_path / 'new'), *addresses(server)]
    download.main(flags)
    wanted = {name: content for name, content in members.items() if re.search('JPEG|Class|Segmentation/', name)}
    assert files_below(tmp_path / 'new') == sorted([*wanted, 'VOCtrainval_11-May-2012.tar'])
    assert len(wanted) == 7
    for name, content in wanted.items():
        assert (tmp_path / 'new' / name).read_bytes() == content
    capsys.readouterr()
    download.main(flags)
    assert capsys.readouterr().out.endswith('VOC2012 exists already\n') and len(server.asked) == 1


def test_the_mirror_comes_after_the_first_address(server, tmp_path, monkeypatch, capsys):
    put(server, monkeypatch, 'VOC', make_tar(voc_members()))
    monkeypatch.setattr(download, 'VOC_MIRROR', download.VOC)
    gone = f'{free_port()}/a.tar'
    monkeypatch.setattr(download, 'VOC', download.VOC._replace(url=gone))
    download.main(['--what', 'voc', '--output_dir', str(tmp_path)])
    assert f'{gone}: Connection refused; start again later' in capsys.readouterr().out
    assert (tmp_path / 'VOCdevkit' / 'VOC2012' / 'JPEGImages' / '2007_000032.jpg').exists()


def test_an_address_of_the_users_own_has_no_mirror(tmp_path):
    gone = f'{free_port()}/a.tar'
    with pytest.raises(utils.UserError, match=f'^{gone}: Connection refused; start again later'):
        download.main(['--what', 'voc', '--output_dir', str(tmp_path), '--voc_url', gone])


LINK = {'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}
JPEGS = 'VOCdevkit/VOC2012/JPEGImages'


@pytest.mark.parametrize('name, content', [
    (f'{JPEGS}/../../../../planted', b'x'), (f'{JPEGS}/a.jpg', LINK),
    (f'{JPEGS}/a.jpg', {'type': tarfile.LNKTYPE, 'linkname': '/etc/passwd'}),
    (f'{JPEGS}/a.jpg', {'type': tarfile.SYMTYPE, 'linkname': '../../../../planted'}),
    (f'{JPEGS}/a', {'type': tarfile.FIFOTYPE}), (f'{JPEGS}/a', {'type': tarfile.CHRTYPE}),
    (f'{JPEGS}/\x1b[2J\n', LINK)])
def test_members_that_lead_out_of_the_folder_are_refused(tmp_path, name, content):
    path = tmp_path / 'a.tar'
    path.write_bytes(make_tar({**voc_members(), name: content}))
    (tmp_path / 'out').mkdir()
    with pytest.raises(utils.UserError, match='remove it and start again, or name another address') as caught:
        download.unpack_voc(str(path), str(tmp_path / 'out'))
    assert not any(map(utils.is_control, str(caught.value)))
    assert os.listdir(tmp_path / 'out') == [] and sorted(os.listdir(tmp_path)) == ['a.tar', 'out']


def test_other_members_are_not_written(tmp_path):
    (tmp_path / 'a.tar').write_bytes(make_tar({**voc_members(), '../planted': b'x', f'{tmp_path}/planted': b'x'}))
    (tmp_path / 'out').mkdir()
    download.unpack_voc(str(tmp_path / 'a.tar'), str(tmp_path / 'out'))
    assert sorted(os.listdir(tmp_path)) == ['a.tar', 'out'] and os.listdir(tmp_path / 'out') == ['VOCdevkit']


@pytest.mark.parametrize('name, content, words', [
    ('a.tar', b'<html>not found</html>', 'damaged, or not an archive'),
    ('a.tar', make_tar(voc_members())[:-15000], 'damaged, or not an archive'),
    ('a.tar', make_tar({'VOCdevkit/VOC2012/JPEGImages/a.jpg': b'x'}), 'has no VOCdevkit/VOC2012/SegmentationClass'),
    ('a.tar.gz', b'<html>not found</html>', 'damaged, or not an archive'),
    ('a.tar.gz', gzip.compress(make_tar(voc_members()))[:-2000], 'damaged, or not an archive')])
def test_a_damaged_archive_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    (tmp_path / 'out').mkdir()
    with pytest.raises(utils.UserError, match=words) as caught:
        download.unpack_voc(str(tmp_path / name), str(tmp_path / 'out'))
    assert str(caught.value).startswith(f'{tmp_path}/{name}: ') and '\n' not in str(caught.value)
    assert os.listdir(tmp_path / 'out') == []


# ------------------------------------------------------------------------------------------- weights


@pytest.fixture
def narrow(monkeypatch):
    """VGG16 with a hundredth of the channels instead of the full one."""
    make_narrow(monkeypatch)


def keras_file(path, arrays):
    """Bytes of a file as Keras's published one."""
    write_published(path, for_bgr(arrays))
    return path.read_bytes()


def slim_checkpoint(folder, arrays):
    """Bytes of a vgg_16.ckpt as slim's archive has it: the first format, one file, with mean_rgb and global_step."""
    with tf.Graph().as_default(), tf.Session() as session:
        for name, values in slim_variables(arrays).items():
            tf.get_variable(name, initializer=values)
        tf.get_variable('vgg_16/mean_rgb', initializer=np.float32([123.68, 116.78, 103.94]))
        tf.get_variable('global_step', initializer=np.int64(0))
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(write_version=tf.train.SaverDef.V1)
        saver.save(session, str(folder / 'vgg_16.ckpt'), write_meta_graph=False, write_state=False)
    return (folder / 'vgg_16.ckpt').read_bytes()


@pytest.mark.slow
def test_both_origins_give_one_network(narrow, server, tmp_path, monkeypatch, capsys):
    arrays = random_arrays()
    put(server, monkeypatch, 'KERAS', keras_file(tmp_path / 'keras.h5', arrays))
    put(server, monkeypatch, 'SLIM', make_tar({'vgg_16.ckpt': slim_checkpoint(tmp_path, arrays)}, 'w:gz'))
    image = np.random.default_rng(1).normal(0, 60, (1, 224, 224, 3)).astype(np.float32)
    outputs = []
    for origin in ('keras', 'slim'):
        flags = ['--what', 'weights', '--output_dir', str(tmp_path / origin), '--weights', origin, *addresses(server)]
        download.main(flags)
        outputs.extend(run_vgg(tmp_path / origin / 'vgg_16.ckpt', image, ['fc8']))
        capsys.readouterr()
        download.main(flags)
        assert 'vgg_16.ckpt exists already' in capsys.readouterr().out
    assert server.asked == [(download.KERAS.name, None), (download.SLIM.name, None)]
    assert np.std(outputs[0]) > 0.1 and outputs[0].tobytes() == outputs[1].tobytes()
    assert sorted(os.listdir(tmp_path / 'slim')) == ['vgg_16.ckpt', 'vgg_16_2016_08_28.tar.gz']


@pytest.mark.parametrize('first, second', [('keras', 'slim'), ('slim', 'keras')])
def test_the_other_origin_where_the_first_is_gone(narrow, server, tmp_path, monkeypatch, capsys, first, second):
    arrays = random_arrays()
    put(server, monkeypatch, 'KERAS', keras_file(tmp_path / 'keras.h5', arrays))
    put(server, monkeypatch, 'SLIM', make_tar({'vgg_16.ckpt': slim_checkpoint(tmp_path, arrays)}, 'w:gz'))
    del server.files[getattr(download, first.upper()).name]
    download.main(['--what', 'weights', '--output_dir', str(tmp_path / 'out'), '--weights', first, *addresses(server)])
    out = capsys.readouterr().out
    assert '404 Not Found; name another address. Now from the next address, ' in out
    assert 'vgg_16.ckpt is complete' in out
    assert [name for name, _ in server.asked] == [getattr(download, word.upper()).name for word in (first, second)]
    assert 'vgg_16/fc8/weights' in read_shapes(tmp_path / 'out' / 'vgg_16.ckpt')


def test_no_origin_at_all(server, tmp_path):
    with pytest.raises(download.UnreachableError, match='vgg_16_2016_08_28.tar.gz: 404 Not Found'):
        download.main(['--what', 'weights', '--output_dir', str(tmp_path), *addresses(server)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('members, words', [
    ({'vgg_19.ckpt': b'x'}, 'has no vgg_16.ckpt'), ({'vgg_16.ckpt': b'x' * 100}, 'has no vgg_16.ckpt with'),
    ({'vgg_16.ckpt': LINK}, 'absolute path'), ({'../vgg_16.ckpt': b'x'}, 'has no vgg_16.ckpt')])
def test_slims_archive_with_something_else(tmp_path, members, words):
    (tmp_path / 'a.tar.gz').write_bytes(make_tar(members, 'w:gz'))
    with pytest.raises(utils.UserError, match=words):
        download.unpack_slim(str(tmp_path / 'a.tar.gz'), str(tmp_path))
    assert os.listdir(tmp_path) == ['a.tar.gz']


def test_slims_archive_of_another_network(narrow, tmp_path):
    arrays = random_arrays()
    arrays['conv5_3'] = (np.zeros((1, 1, 8, 8), np.float32), arrays['conv5_3'][1])
    (tmp_path / 'made').mkdir()
    content = make_tar({'vgg_16.ckpt': slim_checkpoint(tmp_path / 'made', arrays)}, 'w:gz')
    (tmp_path / 'a.tar.gz').write_bytes(content)
    with pytest.raises(utils.UserError, match="has no vgg_16.ckpt with VGG16's variables"):
        download.unpack_slim(str(tmp_path / 'a.tar.gz'), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ['a.tar.gz', 'made']


@pytest.mark.parametrize('place', [-6, 4000])
def test_slims_archive_with_a_damaged_byte(narrow, tmp_path, place):
    """gzip's checksum is the last thing but one in the file: the archive has to be read to its end."""
    (tmp_path / 'made').mkdir()
    content = bytearray(make_tar({'vgg_16.ckpt': slim_checkpoint(tmp_path / 'made', random_arrays())}, 'w:gz'))
    content[place] ^= 1
    (tmp_path / 'a.tar.gz').write_bytes(content)
    with pytest.raises(utils.UserError, match='damaged, or not an archive|has no vgg_16.ckpt with'):
        download.unpack_slim(str(tmp_path / 'a.tar.gz'), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ['a.tar.gz', 'made']


def test_berkeleys_fcn8s(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vgg, 'BLOCKS', caffe_files.BLOCKS)
    caffe_files.write_caffemodel(tmp_path / 'a.caffemodel', caffe_files.random_blobs(1))
    put(server, monkeypatch, 'FCN8S', (tmp_path / 'a.caffemodel').read_bytes())
    server.faults = ['break after 300000']
    flags = ['--fcn8s', '--output_dir', str(tmp_path), '--fcn8s_url', f'{server.url}/{download.FCN8S.name}']
    download.main(flags)
    assert server.asked == [(download.FCN8S.name, None), (download.FCN8S.name, 'bytes=300000-')]
    assert os.path.exists(weights.find_checkpoint(str(tmp_path / 'fcn8s')) + '.index')
    assert not (tmp_path / 'VOCdevkit').exists() and not (tmp_path / 'vgg_16.ckpt.index').exists()
    capsys.readouterr()
    download.main(flags)
    assert capsys.readouterr().out == f'{tmp_path}/fcn8s exists already\n' and len(server.asked) == 2


def test_another_file_than_berkeleys(server, tmp_path, monkeypatch):
    put(server, monkeypatch, 'FCN8S', b'<html>gone</html>')
    with pytest.raises(utils.UserError, match='pascal.caffemodel: is not a caffemodel, or not complete; remove it and'):
        download.main(['--fcn8s', '--output_dir', str(tmp_path)])
    assert os.listdir(tmp_path) == ['fcn8s-heavy-pascal.caffemodel']


# ------------------------------------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_from_the_address_to_a_trained_network(narrow, server, tmp_path, monkeypatch):
    """What `make voc` does, on files of the published form."""
    put(server, monkeypatch, 'VOC', make_tar(voc_members()))
    put(server, monkeypatch, 'KERAS', keras_file(tmp_path / 'keras.h5', random_arrays(top=False)))
    monkeypatch.chdir(tmp_path)
    download.main(addresses(server))
    assert len(read_shapes('vgg_16.ckpt')) == 26
    convert_fcn_dataset.main([])
    train.main(['--checkpoint_path', 'vgg_16.ckpt', '--fc_channels', '8', '--crop_size', '32', '--batch_size', '1',
                '--max_steps', '1', '--val_steps', '0'])
    assert records.count_examples('data/fcn_train.record') == 1
    assert os.path.exists('results/train/model.ckpt-1.index')


def test_the_help_names_every_address(capsys):
    with pytest.raises(SystemExit):
        download.parse_args(['--help'])
    text = ''.join(capsys.readouterr().out.split())  # argparse breaks lines within an address
    assert all(each.url in text for each in (download.VOC, download.KERAS, download.SLIM, download.FCN8S))


def test_the_published_files_are_these():
    """Names and checksums as torchvision's voc.py and keras's vgg16.py have them."""
    assert download.VOC.name == download.VOC_MIRROR.name == 'VOCtrainval_11-May-2012.tar'
    assert download.VOC.md5 == download.VOC_MIRROR.md5 == '6cd6e144f989b92b3379bac3b3de84fd'
    assert download.KERAS.md5 == '64373286793e3c8b2b4e3219cbf3544b'
    assert all(each.url.endswith(f'/{each.name}') for each in (download.VOC, download.VOC_MIRROR, download.KERAS,
                                                               download.SLIM, download.FCN8S))
