"""Contenders that are complete programs, and the least that they must do: read and write files, or read weights.

    python -m benchmarks.programs CHECKPOINT   # imports TensorFlow, reads the network's weights, and ends
"""
import os
import subprocess
import sys
import time

CHUNK = bytes(1 << 20)


def run(turns, arguments, items, files=()):
    """Contender: `python ARGUMENTS` from its start to its end.

    Args:
        arguments: list of str. items: int, what it gets done, such as images.
        files: list of str, what it writes; `extra` has their size, 'file_bytes'.
    """
    while True:
        turns.wait()
        started = time.perf_counter()
        exit_code = subprocess.run([sys.executable, *arguments]).returncode
        seconds = time.perf_counter() - started
        if exit_code:
            sys.exit(f'python {" ".join(arguments)} ended with exit code {exit_code}')
        turns.report(items, seconds, file_bytes=sum(map(os.path.getsize, files)))


def read_and_write(turns, sources, num_bytes, target, items):
    """Contender: reads all files and writes as many bytes as the records hold, and does nothing else.

    Args:
        sources: list of str, paths. num_bytes: int. target: str, the file to write.
        items: int, how many images the sources belong to.
    """
    while True:
        with turns.round(items):
            for path in sources:
                with open(path, 'rb') as file:
                    file.read()
            with open(target, 'wb') as file:
                for begin in range(0, num_bytes, len(CHUNK)):
                    file.write(CHUNK[:num_bytes - begin])


def main(argv=None):
    import tensorflow.compat.v1 as tf
    checkpoint = tf.train.load_checkpoint((argv or sys.argv[1:])[0])
    names = [name for name in checkpoint.get_variable_to_shape_map() if 'Adam' not in name]
    print(f'{sum(checkpoint.get_tensor(name).nbytes for name in names):,} bytes read')


if __name__ == '__main__':
    main()
