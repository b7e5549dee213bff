"""Fetches PASCAL VOC2012, and VGG16's ImageNet weights as a checkpoint with tf-slim's names; or Berkeley's FCN-8s.

    python tools/download.py
    python tools/download.py --fcn8s

makes VOCdevkit/VOC2012 and vgg_16.ckpt in the current folder, or the run folder fcn8s, unless they exist. An
interrupted transfer is resumed by HTTP ranges (RFC 9110, section 14), in this run or the next; until a file is complete
it is called NAME.part. Complete files have checksums:

    VOCtrainval_11-May-2012.tar, 2.0 GB: MD5 in torchvision/datasets/voc.py. Oxford's server is often down; then the
        copy of the book "Dive into Deep Learning" (https://d2l.ai) is fetched, the same file by its name and SHA-1.
    vgg16_weights_tf_dim_ordering_tf_kernels.h5, 553 MB: MD5 in keras/applications/vgg16.py.
    vgg_16_2016_08_28.tar.gz, 514 MB: no MD5 is published. gzip's own checksum detects damage, and the checkpoint in it
        must have VGG16's names and shapes.
    fcn8s-heavy-pascal.caffemodel, 537 MB: no MD5 is published. All layers must be there with FCN-8s's shapes.
"""
import gzip
import hashlib
import os
import re
import sys
import tarfile
import tempfile
import time
import zlib
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import requests
import tqdm
import urllib3

import utils
from inference import weights
from tools import convert_fcn8s, convert_vgg_weights


class Published(NamedTuple):
    """A published file: its name, its address, and its MD5 in hexadecimal, None if unknown."""
    name: str
    url: str
    md5: str | None


VOC = Published('VOCtrainval_11-May-2012.tar',
                'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
                '6cd6e144f989b92b3379bac3b3de84fd')
VOC_MIRROR = VOC._replace(url='https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar')
KERAS = Published('vgg16_weights_tf_dim_ordering_tf_kernels.h5',
                  'https://storage.googleapis.com/tensorflow/keras-applications/vgg16/'
                  'vgg16_weights_tf_dim_ordering_tf_kernels.h5',
                  '64373286793e3c8b2b4e3219cbf3544b')
SLIM = Published('vgg_16_2016_08_28.tar.gz', 'http://download.tensorflow.org/models/vgg_16_2016_08_28.tar.gz', None)

FCN8S = Published('fcn8s-heavy-pascal.caffemodel',
                  'http://dl.caffe.berkeleyvision.org/fcn8s-heavy-pascal.caffemodel', None)

VOC_FOLDERS = ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation')  # all that is used of VOC2012
ATTEMPTS = 4  # in a row without any new bytes
WAIT_SECONDS = 2  # before the second attempt; twice as long before each one after it
TIMEOUT_SECONDS = (10, 60)  # for the connection, and for the next bytes
TEMPORARY = (408, 429, 500, 502, 503, 504)  # HTTP's codes for failures that may have passed a moment later
PART_BYTES = 2 ** 18  # written at a time
BROKEN = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, EOFError)


class UnreachableError(utils.UserError):
    """A file cannot be fetched; what came so far is kept as NAME.part, and another address may have it."""


def fetch(published, folder):
    """Downloads a Published, unless it is in the folder; returns its path there. Its checksum is right.
    UnreachableError; or UserError if the checksum is wrong."""
    path = os.path.join(folder, published.name)
    found = path if os.path.exists(path) else f'{path}.part'
    if found != path:
        transfer(published, found)
    with open(found, 'rb') as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if published.md5 not in (None, md5):
        raise utils.UserError(f'{found}: its MD5 is not {published.md5}; remove it and start again, or name another '
                              f'address than {published.url}')
    os.replace(found, path)
    return path


def fetch_first(origins, output_dir):
    """Fetches the first of several Published that can be reached, and prints which cannot; see fetch."""
    for published, following in zip(origins, origins[1:]):
        try:
            return fetch(published, output_dir)
        except UnreachableError as error:
            print(f'{error}. Now from the next address, {following.url}', flush=True)
    return fetch(origins[-1], output_dir)


def transfer(published, partial):
    failures = 0
    while True:
        before = size_of(partial)
        try:
            return request_rest(published, partial, before)
        except BROKEN as error:
            cause = re.search('Connection refused|Name or service not known|Temporary failure in name resolution|'
                              'Network is unreachable|Unable to connect to proxy|certificate verify failed|timed out|'
                              'answered [0-9]+', str(error))
            reason = cause[0] if cause else 'the connection broke off'
        except (requests.RequestException, ValueError) as error:  # not a URL, say
            raise UnreachableError(f'{published.url}: {utils.find_reason(error)}; name another address') from None
        failures = 1 if size_of(partial) > before else failures + 1
        if failures == ATTEMPTS:
            raise UnreachableError(f'{published.url}: {reason}; start again later to resume')
        print(f'{published.name}: {reason}; trying again', flush=True)
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def request_rest(published, partial, have):
    """Requests a file from the byte `have` on and appends it, or starts again if the server has no ranges; but not for
    less than the part, because a proxy may answer with a page of its own."""
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={have}-'} if have else {})}
    with requests.get(published.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        status, length = response.status_code, response.headers.get('Content-Length', '')
        if status in TEMPORARY:
            raise EOFError(f'answered {status}')
        if status == 416:  # there is no more; the checksum shows whether that is all
            return
        start = have if status == 206 else 0
        total = start + int(length) if length.isdecimal() else None
        if status not in (200, 206):
            raise UnreachableError(f'{published.url}: {status} {response.reason}; name another address')
        if total is not None and total < have:
            raise UnreachableError(f'{published.url}: is shorter than {partial}: remove that, or name another address')
        if start < have:
            print(f'{published.name}: the server cannot resume from {have:,} bytes; starting again', flush=True)
        bar = tqdm.tqdm(desc=published.name, total=total, initial=start, unit='B', unit_scale=True, mininterval=0.5)
        with bar, utils.naming_file(partial), open(partial, 'ab' if start else 'wb') as file:
            # Not decoded: a server may declare an archive's own gzip as the encoding of the transfer.
            for part in response.raw.stream(PART_BYTES, decode_content=False):
                file.write(part)
                bar.update(len(part))
    if total not in (None, size_of(partial)):
        raise EOFError


def unpack(path, folder, prefixes):
    """Unpacks the members whose names begin with one of `prefixes`; UserError if one would leave the folder."""
    try:
        with utils.naming_file(folder), tarfile.open(path, 'r:gz' if path.endswith('.gz') else 'r:') as archive:
            members = tqdm.tqdm(archive, f'unpacking {os.path.basename(path)}', unit='file')
            archive.extractall(folder, (member for member in members
                                        if member.name.removeprefix('./').startswith(prefixes)), filter='data')
            while archive.fileobj.read(PART_BYTES):  # to the end, where gzip's checksum is
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise utils.UserError(f'{path}: damaged, or not an archive ({utils.find_reason(error)}); remove it and start '
                              'again, or name another address') from error


def unpack_voc(path, output_dir):
    """Unpacks VOC_FOLDERS of the archive `path` to OUTPUT_DIR/VOCdevkit/VOC2012, complete or not at all."""
    root = os.path.join('VOCdevkit', 'VOC2012')
    with tempfile.TemporaryDirectory(prefix='partial-', dir=output_dir) as partial:
        unpack(path, partial, tuple(f'{root}/{folder}/' for folder in VOC_FOLDERS))
        for folder in VOC_FOLDERS:
            if not os.path.isdir(os.path.join(partial, root, folder)):
                raise utils.UserError(f'{path}: has no {root}/{folder}; give VOC2012 as it is published')
        os.makedirs(os.path.join(output_dir, 'VOCdevkit'), exist_ok=True)
        os.rename(os.path.join(partial, root), os.path.join(output_dir, root))


def unpack_slim(path, output_dir):
    """Unpacks OUTPUT_DIR/vgg_16.ckpt from tf-slim's archive `path`, if it has all variables of VGG16."""
    with tempfile.TemporaryDirectory(prefix='partial-', dir=output_dir) as partial:
        unpack(path, partial, ('vgg_16.ckpt',))
        checkpoint = os.path.join(partial, 'vgg_16.ckpt')
        try:
            shapes = weights.read_shapes(checkpoint)
        except utils.UserError:
            shapes = {}
        if not convert_vgg_weights.vgg_shapes().items() <= shapes.items():
            raise utils.UserError(f"{path}: has no vgg_16.ckpt with VGG16's variables; give tf-slim's archive")
        os.replace(checkpoint, os.path.join(output_dir, 'vgg_16.ckpt'))


def get_voc(url, output_dir):
    folder = os.path.join(output_dir, 'VOCdevkit', 'VOC2012')
    if os.path.exists(folder):
        print(f'{folder} exists already')
        return
    origins = [VOC, VOC_MIRROR] if url == VOC.url else [VOC._replace(url=url)]
    unpack_voc(fetch_first(origins, output_dir), output_dir)
    print(f'{folder} is complete')


def get_weights(origins, output_dir):
    checkpoint = os.path.join(output_dir, 'vgg_16.ckpt')
    if os.path.exists(checkpoint) or os.path.exists(f'{checkpoint}.index'):
        print(f'{checkpoint} exists already')
        return
    path = fetch_first(origins, output_dir)
    if path.endswith('.h5'):
        convert_vgg_weights.convert(path, checkpoint)
    else:
        unpack_slim(path, output_dir)
    print(f'{checkpoint} is complete')


def get_fcn8s(published, output_dir):
    folder = os.path.join(output_dir, 'fcn8s')
    if os.path.exists(os.path.join(folder, 'train', 'checkpoint')):
        print(f'{folder} exists already')
        return
    convert_fcn8s.convert(fetch(published, output_dir), folder)


def parse_args(argv=None):
    parser = utils.ArgumentParser('Fetches PASCAL VOC2012 and the ImageNet weights of VGG16.')
    parser.add_argument('--what', choices=('all', 'voc', 'weights'), default='all', help='what to fetch')
    parser.add_argument('--fcn8s', action='store_true', help='instead, fetch the FCN-8s that Berkeley trained on '
                        'VOC and SBD, and convert it to the run folder fcn8s')
    parser.add_argument('--output_dir', default='.', help='folder for VOCdevkit, vgg_16.ckpt and the fetched files')
    parser.add_argument('--weights', choices=('keras', 'slim'), default='keras',
                        help='whose file of the weights to fetch; the other one is the fallback')
    parser.add_argument('--voc_url', default=VOC.url, help='address of VOC2012, such as a mirror')
    parser.add_argument('--keras_url', default=KERAS.url, help="address of Keras's weights")
    parser.add_argument('--slim_url', default=SLIM.url, help="address of tf-slim's weights")
    parser.add_argument('--fcn8s_url', default=FCN8S.url, help="address of Berkeley's FCN-8s")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    os.makedirs(args.output_dir, exist_ok=True)
    with utils.StopSignals():
        if args.fcn8s:
            get_fcn8s(FCN8S._replace(url=args.fcn8s_url), args.output_dir)
            return
        if args.what != 'weights':
            get_voc(args.voc_url, args.output_dir)
        if args.what != 'voc':
            origins = [KERAS._replace(url=args.keras_url), SLIM._replace(url=args.slim_url)]
            get_weights(origins if args.weights == 'keras' else origins[::-1], args.output_dir)


if __name__ == '__main__':
    utils.run_program(main)
