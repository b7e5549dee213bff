"""Fetches what the real job needs: PASCAL VOC2012, and VGG16's ImageNet weights as a checkpoint named as tf-slim's.

    python tools/download.py

makes VOCdevkit/VOC2012 and vgg_16.ckpt here; what is there already stays as it is. A transfer that breaks off goes on
from where it was, in this run or the next; until a file is complete it is called NAME.part. Each complete file is
compared with the checksum that its users publish:

    VOCtrainval_11-May-2012.tar, 2.0 GB: MD5 in torchvision/datasets/voc.py. Oxford's server is often down; then comes
        the copy of the book "Dive into Deep Learning" (https://d2l.ai), the same file by its name and SHA-1.
    vgg16_weights_tf_dim_ordering_tf_kernels.h5, 553 MB: MD5 in keras/applications/vgg16.py.
    vgg_16_2016_08_28.tar.gz, 514 MB: nobody has published one. gzip's own checksum tells of damage, and the checkpoint
        in it must have VGG16's names and shapes.

tf.keras.utils.get_file does not do here: it starts again from the first byte, and removes what it has when a connection
breaks. HTTP ranges: RFC 9110, section 14.
"""
import contextlib
import gzip
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import requests
import tqdm
import urllib3

import utils
from tools import convert_vgg_weights
from tools.bounded_reads import BoundedReads
from training import checkpoints


class Published(NamedTuple):
    """A file that somebody publishes."""
    name: str
    url: str
    md5: str | None  # hexadecimal


VOC = Published('VOCtrainval_11-May-2012.tar',
                'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
                '6cd6e144f989b92b3379bac3b3de84fd')
VOC_MIRROR = VOC._replace(url='https://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar')
KERAS = Published('vgg16_weights_tf_dim_ordering_tf_kernels.h5',
                  'https://storage.googleapis.com/tensorflow/keras-applications/vgg16/'
                  'vgg16_weights_tf_dim_ordering_tf_kernels.h5',
                  '64373286793e3c8b2b4e3219cbf3544b')
SLIM = Published('vgg_16_2016_08_28.tar.gz', 'http://download.tensorflow.org/models/vgg_16_2016_08_28.tar.gz', None)

VOC_FOLDERS = ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation')  # of VOCdevkit/VOC2012: all that is used
ATTEMPTS = 4  # in a row that bring nothing
WAIT_SECONDS = 2  # before the second attempt; twice as long before each one after it
TIMEOUT_SECONDS = (10, 60)  # for the connection, and for the next bytes
TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP's codes of what may have passed a moment later
PART_BYTES = 2 ** 18  # that are written at a time
CHECKPOINT_BYTES = 2 ** 30  # that the checkpoint in slim's archive may have; 553 MB are right
BROKEN = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, EOFError)


class UnreachableError(utils.UserError):
    """A file cannot be had from its address."""


class RefusedError(Exception):
    """A server has answered that it has no such file for us. Its message is the answer."""


def parse_args(argv=None):
    """Parses the command line; see --help."""
    parser = utils.ArgumentParser('Fetches PASCAL VOC2012 and the ImageNet weights of VGG16.')
    parser.add_argument('--what', choices=('all', 'voc', 'weights'), default='all', help='what to fetch')
    parser.add_argument('--output_dir', default='.', help='folder of VOCdevkit, vgg_16.ckpt and the files they come in')
    parser.add_argument('--weights', choices=('keras', 'slim'), default='keras',
                        help='whose file of the weights; the other is taken where this one cannot be reached')
    parser.add_argument('--voc_url', default=VOC.url, help='address of VOC2012, a mirror, say')
    parser.add_argument('--keras_url', default=KERAS.url, help="address of Keras's weights")
    parser.add_argument('--slim_url', default=SLIM.url, help="address of tf-slim's weights")
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------- one file


def fetch(published, folder):
    """Downloads a file, unless it is there.

    Args:
        published: Published.
        folder: str; must exist.

    Returns:
        str, path of FOLDER/NAME, complete and with the right checksum.

    Raises:
        UnreachableError: the address is wrong or gone, or the connection broke too often; what came is kept.
        UserError: another checksum. What was fetched is removed then; a file that was there before is not.
        OSError: it cannot be written; what came is kept.
    """
    path = os.path.join(folder, published.name)
    partial = f'{path}.part'
    if os.path.exists(path):
        if not has_md5(path, published.md5):
            raise utils.UserError(f'{path}: its MD5 is not {published.md5}; remove it, or call it '
                                  f'{published.name}.part if it is only the beginning, and start again')
        return path
    transfer(published, partial)
    if not has_md5(partial, published.md5):
        os.remove(partial)
        raise utils.UserError(f'{published.url}: what came has another MD5 than {published.md5}, and was removed; '
                              'start again, or name another address')
    os.replace(partial, path)
    return path


def has_md5(path, md5):
    """Whether a file has this MD5, str in hexadecimal; None: nobody knows it."""
    if md5 is None:
        return True
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def transfer(published, partial):
    """Completes the file `partial`, str, with as many requests as it takes; see fetch for what it raises."""
    failures, farthest = 0, size_of(partial)
    while True:
        try:
            request_rest(published, partial, size_of(partial))
            return
        except RefusedError as error:
            raise UnreachableError(f'{published.url}: {error}; name another address') from None
        except BROKEN as error:
            failures = 1 if size_of(partial) > farthest else failures + 1
            farthest, reason = max(farthest, size_of(partial)), describe(error)
        except (requests.RequestException, ValueError) as error:  # of an address that is none
            raise UnreachableError(f'{published.url}: {first_line(error)}; name another address') from None
        if failures == ATTEMPTS:
            raise UnreachableError(f'{published.url}: {reason}; start again later, and it goes on from what is there')
        print(f'{published.name}: {reason}; trying again', flush=True)
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))


def size_of(path):
    """Bytes of a file; 0 if there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def describe(error):
    """What a connection suffered from, a few words."""
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return 'no answer in time'
    known = 'Connection refused|Name or service not known|Temporary failure in name resolution|answered [0-9]+'
    cause = re.search(known, str(error))
    return cause.group() if cause else 'the connection broke off'


def first_line(error):
    """An exception's message, or its name, as one short line."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def request_rest(published, partial, have):
    """Asks for what a file lacks, and appends it; starts again where a server gives only whole files.

    The beginning may come from another version of the file, of which no header is trusted to tell: the checksum will.

    Args:
        published: Published.
        partial: str, path.
        have: int, bytes that are there.

    Raises:
        RefusedError: the server will not give it.
        One of BROKEN: it broke off.
    """
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={have}-'} if have else {})}
    with requests.get(published.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416:  # there is nothing after these bytes
            if response.headers.get('Content-Range', '').endswith(f'/{have}'):
                return
            raise RefusedError(f'has another length than what {partial} is the beginning of; remove that')
        if response.status_code in TRANSIENT:
            raise EOFError(f'answered {response.status_code}')
        if response.status_code not in (200, 206):
            raise RefusedError(f'{response.status_code} {response.reason}')
        start, total = read_range(response, have)
        if total is not None and total < have:  # the page of some gateway, say, for which nothing is given up
            raise RefusedError(f'has {total:,} bytes, and {partial} more; remove that')
        if start < have:
            print(f'{published.name}: the server cannot go on from {have:,} bytes; from the beginning', flush=True)
        check_space(partial, (total or 0) - have)
        write_rest(response, partial, start, total)


def read_range(response, have):
    """Where in the file an answer begins, and how many bytes the whole has: (int, int or None if it does not say).

    Raises:
        RefusedError: it is another part than the one that was asked for.
    """
    if response.status_code == 206:
        content_range = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)', response.headers.get('Content-Range', ''))
        if not content_range or content_range[1] != str(have):
            raise RefusedError('gives another part of the file than the one asked for')
        return have, None if content_range[2] == '*' else int(content_range[2])
    length = response.headers.get('Content-Length', '')
    return 0, int(length) if length.isdecimal() else None


def check_space(partial, wanted):
    """Raises UserError if the disk has less than so many bytes."""
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(partial))).free
    if free < wanted:
        raise utils.UserError(f'{partial}: {wanted / 1e6:,.0f} MB are still to come, and the disk has '
                              f'{free / 1e6:,.0f} MB; free some space and start again')


def write_rest(response, partial, start, total):
    """Writes an answer to a file from the byte `start` on, and shows how far it is.

    Raises:
        OSError: of the disk. One of BROKEN: the connection ended before the byte `total`.
    """
    bar = tqdm.tqdm(desc=os.path.basename(partial).removesuffix('.part'), total=total, initial=start, unit='B',
                    unit_scale=True, mininterval=0.5)
    with bar, utils.naming_file(partial), open(partial, 'r+b' if start else 'wb') as file:
        file.truncate(start)
        file.seek(start)
        # Not decoded: a server may call an archive's own gzip an encoding of the transfer.
        for part in response.raw.stream(PART_BYTES, decode_content=False):
            file.write(part)
            bar.update(len(part))
    if total is not None and size_of(partial) != total:
        raise EOFError


# ------------------------------------------------------------------------------------------- archives


@contextlib.contextmanager
def open_tar(path):
    """An archive, tarfile.TarFile, whose members come one after the other.

    Raises:
        UserError: within the block, where it is damaged.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(gzip.open(path) if path.endswith('.gz') else open(path, 'rb'))
            yield stack.enter_context(tarfile.open(fileobj=BoundedReads(file), mode='r:'))
            while file.read(PART_BYTES):  # to the end, where gzip's checksum is
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise utils.UserError(f'{path}: damaged, or no archive ({first_line(error)}); remove it and start '
                              'again') from error


def check_member(path, member, folder):
    """Raises UserError unless a member of the archive `path` is a file or folder that stays below `folder`."""
    try:
        tarfile.data_filter(member, folder)
        is_plain = member.isdir() or (member.isfile() and not member.issparse())
        is_plain = is_plain and not member.name.startswith('/')  # which data_filter would take off
    except tarfile.FilterError:
        is_plain = False
    if not is_plain:
        raise utils.UserError(f'{path}: holds {ascii(member.name)[:200]}, which leads elsewhere or is no plain file; '
                              'remove it and name another address')


def unpack_voc(path, output_dir):
    """Unpacks VOC_FOLDERS to OUTPUT_DIR/VOCdevkit/VOC2012, all or nothing.

    Args:
        path: str, the archive, whose members begin with VOCdevkit/VOC2012.
        output_dir: str.

    Raises:
        UserError: it is damaged, lacks a folder, or has members that would lead out of it.
        OSError: it cannot be written.
    """
    root = os.path.join('VOCdevkit', 'VOC2012')
    with tempfile.TemporaryDirectory(prefix='partial-', dir=output_dir) as partial:
        with open_tar(path) as archive, utils.naming_file(os.path.join(output_dir, root)):
            for member in tqdm.tqdm(archive, f'unpacking {os.path.basename(path)}', unit='file'):
                check_member(path, member, partial)
                if member.name.startswith(tuple(f'{root}/{folder}/' for folder in VOC_FOLDERS)):
                    archive.extract(member, partial, filter='data')
        for folder in VOC_FOLDERS:
            if not os.path.isdir(os.path.join(partial, root, folder)):
                raise utils.UserError(f'{path}: has no {root}/{folder}; give VOC2012 as it is published')
        os.makedirs(os.path.join(output_dir, 'VOCdevkit'), exist_ok=True)
        os.rename(os.path.join(partial, root), os.path.join(output_dir, root))


def unpack_slim(path, checkpoint):
    """Takes vgg_16.ckpt out of slim's archive, complete, and a checkpoint of VGG16, or not at all.

    Args:
        path: str, the archive.
        checkpoint: str, the file to write.

    Raises:
        UserError: it is damaged, or has no such checkpoint.
        OSError: it cannot be written.
    """
    with utils.whole_file(checkpoint) as partial, open_tar(path) as archive:
        for member in archive:
            check_member(path, member, os.path.dirname(os.path.abspath(checkpoint)))
            if member.name.removeprefix('./') == 'vgg_16.ckpt':
                break
        else:
            raise utils.UserError(f"{path}: has no vgg_16.ckpt; give tf-slim's archive of VGG16")
        if member.size > CHECKPOINT_BYTES:
            raise utils.UserError(f"{path}: its vgg_16.ckpt is too large; give tf-slim's archive of VGG16")
        with open(partial, 'wb') as file:
            shutil.copyfileobj(archive.extractfile(member), file)
        check_shapes(path, partial)


def check_shapes(path, checkpoint):
    """Raises UserError unless a checkpoint, which the archive `path` holds, has all variables of VGG16."""
    try:
        shapes = checkpoints.read_shapes(checkpoint)
    except utils.UserError:
        raise utils.UserError(f"{path}: its vgg_16.ckpt is no checkpoint; give tf-slim's archive") from None
    for name, variable in convert_vgg_weights.build_variables().items():
        if shapes.get(name) != variable.shape.as_list():
            raise utils.UserError(f"{path}: its vgg_16.ckpt has no {name} of VGG16's shape; give tf-slim's archive")


# ------------------------------------------------------------------------------------------- program


def get_voc(url, output_dir):
    """Makes OUTPUT_DIR/VOCdevkit/VOC2012, unless it is there; see fetch and unpack_voc for what it raises."""
    folder = os.path.join(output_dir, 'VOCdevkit', 'VOC2012')
    if os.path.exists(folder):
        missing = [name for name in VOC_FOLDERS if not os.path.isdir(os.path.join(folder, name))]
        if missing:
            raise utils.UserError(f'{folder}: lacks {missing[0]}; move it away and start again')
        print(f'{folder} is there')
        return
    origins = [VOC, VOC_MIRROR] if url == VOC.url else [VOC._replace(url=url)]
    unpack_voc(fetch_first(origins, output_dir), output_dir)
    print(f'{folder} is complete')


def get_weights(origins, output_dir):
    """Makes OUTPUT_DIR/vgg_16.ckpt, unless it is there.

    Args:
        origins: list of Published, KERAS and SLIM with their addresses; a later one is for where those before it
            cannot be reached.
        output_dir: str.

    Raises:
        UnreachableError: none can be reached. UserError and OSError: see fetch, unpack_slim, convert_vgg_weights.
    """
    checkpoint = os.path.join(output_dir, 'vgg_16.ckpt')
    if os.path.exists(checkpoint) or os.path.exists(f'{checkpoint}.index'):
        print(f'{checkpoint} is there')
        return
    path = fetch_first(origins, output_dir)
    if path.endswith('.h5'):
        convert_vgg_weights.main(['--source', path, '--output', checkpoint])
    else:
        unpack_slim(path, checkpoint)
    print(f'{checkpoint} is complete')


def fetch_first(origins, output_dir):
    """Fetches the first of several Published that can be reached, and says which cannot."""
    for published in origins[:-1]:
        try:
            return fetch(published, output_dir)
        except UnreachableError as error:
            print(f'{error}. Now from the next address, {origins[origins.index(published) + 1].url}', flush=True)
    return fetch(origins[-1], output_dir)


def main(argv=None):
    """Fetches, unpacks and converts.

    Raises:
        UserError, OSError: see get_voc and get_weights.
    """
    args = parse_args(argv)
    os.makedirs(args.output_dir, exist_ok=True)
    with utils.StopSignals():
        if args.what != 'weights':
            get_voc(args.voc_url, args.output_dir)
        if args.what != 'voc':
            origins = [KERAS._replace(url=args.keras_url), SLIM._replace(url=args.slim_url)]
            get_weights(origins if args.weights == 'keras' else origins[::-1], args.output_dir)


if __name__ == '__main__':
    utils.run_program(main)
