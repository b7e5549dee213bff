"""Reads the float arrays of a pickled dict of lists, such as vgg16.npy holds, without unpickling.

A pickle is a program for a small stack machine, which may call any function by its name. The machine below knows of
lists, dicts, tuples, numbers, strings and three functions, those that NumPy makes an array with; it calls none of them,
but notes what they were to make. Anything else in the file is an error. Strings stay in the file until somebody asks
for them; so memory depends on the number of instructions alone, which is limited.

Source: the descriptions of the instructions in Python's Lib/pickletools.py; what NumPy pickles is in its documentation
of `ndarray.__reduce__` and `ndarray.__setstate__`.
"""
import codecs
import math
import os
import struct
from typing import NamedTuple

import numpy as np

MAX_INSTRUCTIONS = 20_000  # VGG16's 32 arrays take about 1,000
MAX_NAME = 100  # bytes of a layer's or a function's name
PART = 2 ** 20  # bytes that are read at a time

MARK, RECONSTRUCT, NDARRAY, DTYPE, ENCODE = (object() for _ in range(5))
GLOBALS = {'numpy.core.multiarray _reconstruct': RECONSTRUCT, 'numpy._core.multiarray _reconstruct': RECONSTRUCT,
           'numpy ndarray': NDARRAY, 'numpy dtype': DTYPE, '_codecs encode': ENCODE}

# Instructions that push: a constant; a number, in the form of `struct`; a string, whose length has that form.
CONSTANTS = {b'N': None, b'\x88': True, b'\x89': False, b')': (), b'(': MARK}
NUMBERS = {b'K': '<B', b'M': '<H', b'J': '<i'}
STRINGS = {b'U': '<B', b'T': '<i', b'C': '<B', b'B': '<I', b'\x8e': '<Q',  # bytes, or str of Python 2
           b'X': '<I', b'\x8c': '<B', b'\x8d': '<Q'}  # UTF-8
EMPTY = {b']': list, b'}': dict}
TUPLES = {b'\x85': 1, b'\x86': 2, b'\x87': 3}
# And those that write to and read from the memo.
PUTS = {b'q': '<B', b'r': '<I'}
GETS = {b'h': '<B', b'j': '<I'}
PROTOCOL, FRAME, LONG, MEMOIZE, STOP = b'\x80', b'\x95', b'\x8a', b'\x94', b'.'


class Span(NamedTuple):
    """A string in the file."""
    offset: int  # bytes
    length: int  # bytes
    is_utf8: bool = False  # as Python 3 writes bytes in protocol 2: each a character of latin-1, and these in UTF-8


class Dtype:
    """A dtype to be: `code` such as 'f4', then the byte order, '<', '>' or '|'."""

    def __init__(self, code):
        self.code, self.byte_order = code, '|'


class PickledArray:
    """An array to be.

    Attributes:
        shape: tuple of int; None as long as nothing is known.
        dtype: np.float32; None for an array of objects.
        content: Span of the values, or the list of objects.
    """

    def __init__(self, file):
        self.file = file
        self.shape = self.dtype = self.content = self.is_fortran = None

    def read(self):
        """The array. Raises ValueError if there are less values, or more, than the shape says."""
        values = np.empty(self.shape[::-1] if self.is_fortran else self.shape, np.float32)
        self.file.seek(self.content.offset)
        fill(values, read_parts(self.file, self.content))
        return values.T if self.is_fortran else values


def check_shape(shape):
    """Raises ValueError unless `shape` is one that a network's weights can have."""
    are_sizes = type(shape) is tuple and all(type(size) is int and 0 <= size < 2 ** 31 for size in shape)
    if not are_sizes or len(shape) > 4:
        raise ValueError('an impossible shape')


def fill(values, parts):
    """Fills an array in C order with bytes.

    Args:
        values: contiguous array of any dtype.
        parts: iterable of bytes-like, small ones; it is left as soon as it has given too much.

    Raises:
        ValueError: these are less bytes than the array has, or more.
    """
    target, filled = memoryview(values.reshape(-1).view(np.uint8)), 0
    for part in parts:
        if filled + len(part) > len(target):
            raise ValueError('more values than the shape says')
        target[filled:filled + len(part)] = part
        filled += len(part)
    if filled < len(target):
        raise ValueError('less values than the shape says')


def read_parts(file, span):
    """Yields the bytes of a Span, whose beginning the file is at."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    left = span.length
    while left:
        part = file.read(min(left, PART))
        if not part:
            raise ValueError('it ends too early')
        left -= len(part)
        yield decoder.decode(part, final=not left).encode('latin-1') if span.is_utf8 else part


def read_layers(file):
    """What a pickle, with which the file goes on, says of its arrays.

    Args:
        file: binary file, at the pickle's beginning: of an object array that holds one dict, as np.save writes it.

    Returns:
        dict of str to list of PickledArray; their values are still in the file.

    Raises:
        ValueError: it is damaged, or anything else than a dict of lists of float arrays.
    """
    try:
        outer = Machine(file).run()
    except (IndexError, KeyError, TypeError, struct.error) as error:  # of a stack that is too short, say
        raise ValueError(f'a damaged pickle: {type(error).__name__}') from None
    inner = outer.content if isinstance(outer, PickledArray) else None
    layers = inner[0] if isinstance(inner, list) and len(inner) == 1 else None
    if not isinstance(layers, dict):
        raise ValueError('a pickle of something else than one dict')
    for name, arrays in layers.items():
        if not isinstance(arrays, list) or not all(isinstance(array, PickledArray) and array.dtype for array in arrays):
            raise ValueError(f'{ascii(name)} is something else than a list of float arrays')
    return layers


class Machine:
    """Runs one pickle."""

    def __init__(self, file):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.stack, self.memo = [], {}

    def run(self):
        """Returns what the pickle leaves on the stack."""
        for _ in range(MAX_INSTRUCTIONS):
            instruction = self.file.read(1)
            if instruction == STOP:
                return self.stack.pop()
            self.step(instruction)
        raise ValueError(f'a pickle of more than {MAX_INSTRUCTIONS:,} instructions')

    def step(self, instruction):
        """Does what one instruction says."""
        if instruction in CONSTANTS:
            self.stack.append(CONSTANTS[instruction])
        elif instruction in NUMBERS:
            self.stack.append(self.number(NUMBERS[instruction]))
        elif instruction == LONG:
            self.stack.append(int.from_bytes(self.file.read(self.number('<B')), 'little', signed=True))
        elif instruction in STRINGS:
            self.stack.append(self.skip(self.number(STRINGS[instruction])))
        elif instruction in EMPTY:
            self.stack.append(EMPTY[instruction]())
        elif instruction in TUPLES:
            self.stack.append(tuple(self.pop(TUPLES[instruction])))
        elif instruction in PUTS:
            self.memo[self.number(PUTS[instruction])] = self.stack[-1]
        elif instruction in GETS:
            self.stack.append(self.memo[self.number(GETS[instruction])])
        elif instruction == MEMOIZE:
            self.memo[len(self.memo)] = self.stack[-1]
        elif instruction in (PROTOCOL, FRAME):
            self.number('<B' if instruction == PROTOCOL else '<Q')
        elif instruction in BUILDERS:
            BUILDERS[instruction](self)
        else:
            raise ValueError(f'the pickle has instruction {instruction!r}, which no dict of float arrays needs')

    # ---- reading

    def number(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def skip(self, length):
        """The string that comes next, a Span, which the file is led past."""
        span = Span(self.file.tell(), length)
        if not 0 <= length <= self.size - span.offset:
            raise ValueError('a string beyond the end of the file')
        self.file.seek(length, os.SEEK_CUR)
        return span

    def text(self, span):
        """A short string of the file, str."""
        if not isinstance(span, Span) or span.length > MAX_NAME:
            raise ValueError('something else than a name where a name has to be')
        here = self.file.tell()
        self.file.seek(span.offset)
        text = self.file.read(span.length).decode('latin-1')
        self.file.seek(here)
        return text

    def pop(self, count):
        """The last `count` things of the stack, list."""
        if count > len(self.stack):
            raise ValueError('the pickle takes more than there is')
        taken = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return taken

    def pop_marked(self):
        """All that has come since the last mark, list."""
        taken = []
        while (top := self.stack.pop()) is not MARK:
            taken.append(top)
        return taken[::-1]

    # ---- building

    def make_tuple(self):
        self.stack.append(tuple(self.pop_marked()))

    def append(self):
        self.extend(self.pop(1))

    def appends(self):
        self.extend(self.pop_marked())

    def extend(self, values):
        if not isinstance(self.stack[-1], list):
            raise ValueError('values for something else than a list')
        self.stack[-1].extend(values)

    def set_item(self):
        self.update(self.pop(2))

    def set_items(self):
        self.update(self.pop_marked())

    def update(self, items):
        """Takes keys and values, list of both in turn, into the dict on the stack."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError('values for something else than a dict')
        self.stack[-1].update({self.text(key): value for key, value in zip(items[::2], items[1::2])})

    def named_function(self):
        names = [self.file.readline(MAX_NAME + 1).rstrip(b'\n').decode('latin-1') for _ in range(2)]
        self.push_function(names)

    def stacked_function(self):
        self.push_function([self.text(name) for name in self.pop(2)])

    def push_function(self, names):
        name = ' '.join(names)
        if name not in GLOBALS:
            raise ValueError(f'the pickle names {ascii(name)}, which no dict of float arrays needs')
        self.stack.append(GLOBALS[name])

    def call(self):
        """Notes what a function was to make."""
        function, arguments = self.pop(2)
        if function is RECONSTRUCT and arguments[0] is NDARRAY:
            made = PickledArray(self.file)
        elif function is DTYPE:
            made = Dtype(self.text(arguments[0]))
        elif function is ENCODE and isinstance(arguments[0], Span) and self.text(arguments[1]) == 'latin1':
            made = Span(*arguments[0][:2], is_utf8=True)
        else:
            raise ValueError('the pickle calls what is no function of its')
        self.stack.append(made)

    def set_state(self):
        """Takes in the state of a dtype or an array, as their __setstate__ does."""
        state = self.pop(1)[0]
        target = self.stack[-1]
        if isinstance(target, Dtype):
            target.byte_order = self.text(state[1])
            if state[2:5] != (None, None, None):
                raise ValueError('a dtype of several parts')
        else:
            set_array_state(target, *state)


BUILDERS = {b't': Machine.make_tuple, b'a': Machine.append, b'e': Machine.appends, b's': Machine.set_item,
            b'u': Machine.set_items, b'c': Machine.named_function, b'\x93': Machine.stacked_function,
            b'R': Machine.call, b'b': Machine.set_state}


def set_array_state(array, version, shape, dtype, is_fortran, content):
    """Takes in what `ndarray.__setstate__` gets; ValueError if no array of floats, or of one object, has it."""
    if not isinstance(array, PickledArray) or not isinstance(dtype, Dtype) or version != 1:
        raise ValueError('the state of something else than an array')
    check_shape(shape)
    is_float = dtype.code == 'f4' and dtype.byte_order == '<'
    if not (isinstance(content, Span) if is_float else dtype.code == 'O8' and isinstance(content, list)):
        raise ValueError(f'an array of {ascii(dtype.byte_order + dtype.code)}, where float32 is needed')
    array.shape, array.content, array.is_fortran = shape, content, bool(is_fortran)
    if is_float:
        array.dtype = np.dtype(np.float32)
        if not content.is_utf8 and content.length != 4 * math.prod(shape):
            raise ValueError('an array whose shape does not fit its values')
