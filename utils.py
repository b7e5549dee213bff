"""What every script shares: bilinear kernels, the VOC palette, picture files, flags, and how programs end.

Nothing here imports TensorFlow.
"""
import argparse
import contextlib
import csv
import errno
import importlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import cv2
import numpy as np
from PIL import Image


class UserError(Exception):
    """A user's mistake or a damaged file. Its message is one line that names the file or flag, and the cure."""


def bilinear_upsample_weights(factor, number_of_classes):
    """Kernel that makes a transposed convolution of stride `factor` interpolate each class bilinearly.
    float32 [K, K, number_of_classes, number_of_classes] with K = 2 * factor - factor % 2; a channel feeds only itself.
    Source: section 3.3 of Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation"."""
    size = 2 * factor - factor % 2
    centre = (size - 1) / 2
    triangle = 1 - np.abs(np.arange(size) - centre) / factor
    weights = np.zeros((size, size, number_of_classes, number_of_classes), np.float32)
    channels = np.arange(number_of_classes)
    weights[:, :, channels, channels] = np.outer(triangle, triangle)[:, :, np.newaxis]
    return weights


def voc_palette():
    """The VOC colour map: the bits of a class index, three at a time, spread over R, G and B from the high end.
    uint8 [256, 3], RGB. Row 0 is black (background), 15 (192, 128, 128) (person), 255 (224, 224, 192) (void). Source:
    VOCcolormap.m of the PASCAL VOC development kit."""
    index = np.arange(256)[:, np.newaxis]
    channel = np.arange(3)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def overlay(image, labels, palette, has_background, opacity=0.6):
    """Lays the colours (palette: uint8 [256, 3]) of labels, uint8 [H, W], over an image, uint8 RGB [H, W, 3].
    has_background: class 0 shows the image alone. opacity: share of the colour, 0..1."""
    blended = cv2.addWeighted(image, 1 - opacity, palette[labels], opacity, 0)
    return np.where(labels[:, :, np.newaxis] > 0, blended, image) if has_background else blended


def error_map(image, labels, predictions, number_of_classes):
    """Where a prediction is wrong: red; right: the image, faint; void: VOC's colour of void. uint8 RGB [H, W, 3].
    image: uint8 RGB [H, W, 3]. labels, predictions: uint8 [H, W]; labels of number_of_classes and above are void."""
    errors = cv2.addWeighted(image, 0.3, np.full_like(image, 255), 0.7, 0)
    errors[labels != predictions] = (220, 30, 30)
    errors[labels >= number_of_classes] = voc_palette()[255]
    return errors


def save_image(path, pixels):
    """Writes uint8 RGB [H, W, 3] as JPEG or PNG (by the path's ending), complete or not at all."""
    save_picture(path, Image.fromarray(pixels), quality=95, subsampling=0)


def save_labels(path, labels, palette):
    """Writes a label map uint8 [H, W] as PNG with a palette, uint8 [256, 3], complete or not at all."""
    picture = Image.fromarray(labels, 'L')
    picture.putpalette(palette.tobytes())
    save_picture(path, picture)


def save_picture(path, picture, **options):
    """Writes a Pillow image as PNG where the path ends so, else as JPEG, complete or not at all; OSError names it.
    It is encoded in memory, because Pillow reports a full disk as no more than "encoder error -2"."""
    file = io.BytesIO()
    picture.save(file, 'PNG' if path.endswith('.png') else 'JPEG', **options)
    with whole_file(path) as partial, open(partial, 'wb') as opened:
        opened.write(file.getbuffer())


def open_file(path, encoding=None, **options):
    """open() for reading bytes, or text if there is an `encoding`; OSError also for a folder, a device or a pipe, which
    open() may wait for without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, 'is not a file', path)
    return open(path, 'r' if encoding else 'rb', encoding=encoding, **options)


def read_lines(path, cure):
    """The stripped lines of a UTF-8 file that are not empty; UserError, which ends with `cure`, if there are none."""
    try:
        with open_file(path, encoding='utf-8-sig') as file:  # some editors begin with a byte order mark
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; {cure}') from error
    except UnicodeDecodeError:
        raise UserError(f'{path}: is not UTF-8 text; {cure}') from None
    if not lines:
        raise UserError(f'{path}: is empty; {cure}')
    return lines


def read_rows(path):
    """The complete rows of a CSV file, list of dict of column to str; empty if there is no file. Rows that a power cut
    left too short, too long, or without a value are left out, as is a last line without an end."""
    if not os.path.isfile(path):
        return []
    with open(path, encoding='utf-8', errors='replace', newline='') as file:
        lines = file.read().replace('\0', '').rpartition('\n')[0].splitlines()
    return [row for row in csv.DictReader(lines) if None not in row and all(row.values())]


def make_folder(path):
    """Makes a folder, unless it exists; OSError if it is read-only, before the hours that its content may take."""
    os.makedirs(path, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, 'is read-only', path)


@contextlib.contextmanager
def whole_file(path):
    """Gives a temporary path to write to, and renames it to `path` at the end, so that no half-written file is left
    there; an OSError names `path`."""
    folder, name = os.path.split(path)
    # Two programs may write the same file at once, perhaps in two containers where they have the same number.
    partial = os.path.join(folder, f'partial-{os.getpid()}-{secrets.token_hex(4)}-{name}')
    try:
        with naming_file(path, partial):
            yield partial
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


@contextlib.contextmanager
def naming_file(path, partial=None):
    """Makes an OSError name `path`, if it names no file (a full disk) or the temporary file `partial`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, partial):
            error.filename = path
        raise


def save_text(path, text):
    """Writes a UTF-8 file, complete or not at all; what UTF-8 cannot hold (odd file names) becomes a question mark."""
    with whole_file(path) as partial, open(partial, 'w', encoding='utf-8', errors='replace') as file:
        file.write(text)


def save_json(path, content):
    """Writes dicts, lists, strings and numbers as JSON, complete or not at all; nan, which JSON lacks, is an error."""
    save_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def is_control(character):
    """Whether a character controls a terminal instead of being printed: Unicode's category Cc."""
    return character < ' ' or '\x7f' <= character <= '\x9f'


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in its help, without abbreviations, and with one line for a wrong flag (exit code 2)."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def add_argument(self, *names, **settings):
        if settings.get('required'):
            settings['default'] = argparse.SUPPRESS  # else the help names None as its default
        return super().add_argument(*names, **settings)

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {message} (see --help)\n')


def _number(kind, lowest, above=False):
    """An argparse type: an int or a float from `lowest` up, or `above` it, that 32 bits or a float can hold."""
    highest = 2 ** 31 - 1 if kind is int else sys.float_info.max

    def parse(text):
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is not a {"whole " if kind is int else ""}number') from None
        if number > highest:
            raise argparse.ArgumentTypeError(f'{number} is too large')
        if not number >= lowest or (above and number == lowest):
            raise argparse.ArgumentTypeError(f'{number:g} is not a number {"above" if above else "from"} {lowest}'
                                             f'{"" if above else " up"}')
        return number
    return parse


positive_int, non_negative_int = _number(int, 1), _number(int, 0)
positive_float, non_negative_float = _number(float, 0, above=True), _number(float, 0)


class Stopped(KeyboardInterrupt):
    """A signal ended a program, or the terminal or pipe that it printed to was closed; the message is one line.
    number: int, of the signal; the exit code is 128 more, as a shell has it."""

    def __init__(self, number, message):
        super().__init__(message)
        self.number = number


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C; a shutdown; the terminal was closed
CLOSED = {errno.EPIPE: signal.SIGPIPE, errno.EIO: signal.SIGHUP}  # what writing to a closed pipe or terminal gives


def close_output(stream, error):
    """Sends a closed stream's text nowhere; returns the signal that an OSError stands for, or raises it again."""
    if error.errno not in CLOSED or error.filename is not None:
        raise error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return CLOSED[error.errno]


class _Output:
    """A text stream that calls `note`, function of a signal and a frame, once it is closed, instead of failing."""

    def __init__(self, stream, note):
        self.stream, self.note = stream, note

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(text)
        except OSError as error:
            self.note(close_output(self.stream, error), None)

    def flush(self):
        try:
            self.stream.flush()
        except OSError as error:
            self.note(close_output(self.stream, error), None)


@contextlib.contextmanager
def without_stop_signals():
    """Blocks STOP_SIGNALS in this thread. A process that is started meanwhile inherits that, and finishes its work."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """Makes STOP_SIGNALS, and a closed sys.stdout (as SIGPIPE), raise Stopped: at once, or after hold() at check().
    While they are held, a second signal changes nothing."""

    def __init__(self):
        self.received, self.held, self.before, self.stdout = None, False, {}, sys.stdout

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stays
                    self.before[number] = signal.signal(number, self._note)
            sys.stdout = _Output(sys.stdout, self._note)
        return self

    def __exit__(self, *_):
        sys.stdout = self.stdout
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received is None:
            self.received = number
            if not self.held:
                self.check()

    def hold(self):
        self.held = True
        self.check()

    def check(self):
        if self.received is not None:
            raise Stopped(self.received, f'stopped by {signal.Signals(self.received).name}')


CURES = {errno.ENOSPC: 'free some space and start again', errno.EDQUOT: 'free some space and start again',
         errno.EFBIG: 'raise the limit on file sizes (ulimit -f) and start again',
         **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), 'make it accessible, or name another')}


# What TensorFlow prints on every machine when it is imported and looks for GPUs, although nothing is wrong.
NOISE = ('All log messages before absl::InitializeLog|oneDNN custom operations are on|Could not find cuda drivers|'
         'failed call to cuInit: .*(UNKNOWN ERROR .303.|NO_DEVICE)')


@contextlib.contextmanager
def without_noise():
    """Keeps the lines of NOISE off stderr. Each other line passes, even if the process crashes: grep is another one."""
    if not shutil.which('grep') or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    with os.fdopen(os.dup(2), 'wb') as kept, subprocess.Popen(
            ['grep', '-avE', '--line-buffered', NOISE], stdin=subprocess.PIPE, stdout=kept) as grep:
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept.fileno(), 2)


def import_tensorflow(frozen_weights=False):
    """Imports TensorFlow without NOISE. frozen_weights: no weight changes after the first prediction of a session, so
    that oneDNN may keep its own copy of a convolution's weights. TensorFlow reads this once, at its first session."""
    if frozen_weights:
        os.environ.setdefault('TF_ONEDNN_ASSUME_FROZEN_WEIGHTS', '1')
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no traceback while the import takes its seconds
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')  # warnings and errors
    # Nothing here uses Keras, whose import takes 0.7 s. TensorFlow now looks for the old one, which is not installed.
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    with without_noise():
        importlib.import_module('tensorflow.compat.v1')


def quiet_tensorflow():
    """Keeps notices of deprecation off the terminal: this suite is TF1-style on purpose."""
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', message='`layer.apply` is deprecated')  # raised by slim's layers


def find_reason(error):
    """The reason in a TensorFlow error, one line of str; the rest of its message describes the graph."""
    of_graph = r'\{\{.*?\}\} *|^Error in user-defined function .* iterator: \S+: '
    message = re.sub(r'(?m)^\d+ root error.*\n +\(0\) ', '', getattr(error, 'message', str(error)))
    lines = [re.sub(of_graph, '', line).strip() for line in message.splitlines()
             if not line.startswith((' ', '\t', 'Graph execution error', 'Detected at', 'Node:', 'From /job:'))]
    reason = next((line for line in lines if line), type(error).__name__)
    return reason if len(reason) <= 200 else f'{reason[:100]} ... {reason[-95:]}'  # a long path hides neither end


def prepare_terminal():
    """Makes characters that the terminal cannot show, such as Chinese ones in ASCII, escapes instead of an error; and
    Ctrl-C an exception again after import_tensorflow, so that unfinished files are removed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what replaces it in a notebook
            stream.reconfigure(errors='backslashreplace')


def run_program(main):
    """Runs a script's main(), which returns the exit code or None for 0, and ends the process: a UserError or OSError
    as one line on stderr with exit code 1."""
    program = os.path.basename(sys.argv[0])
    prepare_terminal()
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        sys.exit(f'{program}: error: {error}')
    except OSError as error:
        if error.filename is None and error.errno in CLOSED:  # as in `predict.py ... | head`
            sys.exit(128 + close_output(sys.stdout, error))
        if error.filename is None:
            sys.exit(f'{program}: error: {error}')
        cure = f'; {CURES[error.errno]}' if error.errno in CURES else ''
        sys.exit(f'{program}: error: {error.filename}: {error.strerror}{cure}')
    except UnicodeEncodeError as error:  # of a file's name; what is printed has escapes
        sys.exit(f'{program}: error: {error.object}: has characters that the encoding of file names here, '
                 f'{error.encoding}, lacks; start again with PYTHONUTF8=1')
    except Stopped as stop:
        for number in STOP_SIGNALS:  # a second one must not interrupt the end
            signal.signal(number, signal.SIG_IGN)
        try:
            print(f'{program}: {stop}', file=sys.stderr, flush=True)
        except OSError as closed:
            close_output(sys.stderr, closed)
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        sys.exit(130)
