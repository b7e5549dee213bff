"""Contender for conversion: what the disk alone would allow."""
import os
import time

from benchmarks.measure import Round


def read_and_write(sources, num_bytes, target, items):
    """Contender: reads all files and writes as many bytes as the records hold, and does nothing else.

    Args:
        sources: list of str, paths. num_bytes: int. target: str, the file that is written.
        items: int, images that the sources stand for.
    """
    chunk = bytes(1 << 20)
    while True:
        started = time.perf_counter()
        for path in sources:
            with open(path, 'rb') as file:
                file.read()
        with open(target, 'wb') as file:
            for start in range(0, num_bytes, len(chunk)):
                file.write(chunk[:num_bytes - start])
        yield Round(items, time.perf_counter() - started, extra=os.path.getsize(target))
