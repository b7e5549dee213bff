"""Runs contenders in turn, each in a process of its own, and measures their time and memory. Imports no TensorFlow."""
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from typing import NamedTuple

import psutil

from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Contender(NamedTuple):
    """One way of doing a row's work.

    name: as in the table. function: 'MODULE.FUNCTION' of this package, see contend.py. settings: dict, its arguments.
    cores: numbers of the cores that its process may use; None for all.
    """
    name: str
    function: str
    settings: dict
    cores: list | None = None


class Round(NamedTuple):
    """What one round did: items (such as images), seconds, and what else the row needs.

    peak_bytes: the most memory that the contender has held since its start.
    """
    items: int
    seconds: float
    extra: dict = {}
    peak_bytes: int = 0


def summarise(values):
    """Median, lowest and highest of a list of numbers."""
    return statistics.median(values), min(values), max(values)


def ratios(ours, theirs):
    """Ours divided by theirs, round by round, because what slowed the machine down in a round has slowed both.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(ours) != len(theirs):
        raise ValueError(f'{len(ours)} rounds against {len(theirs)}')
    return [own / other for own, other in zip(ours, theirs)]


def rates(rounds):
    """Items per second of each Round, list of float."""
    return [each.items / each.seconds for each in rounds]


def peaks(rounds):
    """Peak memory of each Round in MB (10^6 bytes), list of float."""
    return [each.peak_bytes / 1e6 for each in rounds]


# ------------------------------------------------------------------------------------------- processes


def find_cores():
    """Numbers of the cores that this process may use, list of int."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count()))


def sum_memory(processes):
    """Resident memory of psutil.Processes together, in bytes."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += process.memory_info().rss
    return total


class Worker:
    """The process of a Contender. What it prints goes to a file of its name in LOG_DIR."""

    def __init__(self, contender, log_dir):
        self.contender, self.peak_bytes = contender, 0
        self.log = open(os.path.join(log_dir, re.sub(r'\W+', '_', contender.name) + '.log'), 'a+')
        self.process = psutil.Popen([sys.executable, '-m', 'benchmarks.contend'], cwd=ROOT, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.write(contender._asdict())

    def write(self, content):
        """Sends a line of JSON to the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen when its answer is read
            self.process.stdin.write(json.dumps(content) + '\n')
            self.process.stdin.flush()

    def run_round(self):
        """Has the process do one Round, and watches its memory.

        Raises:
            UserError: the process has ended.
        """
        ended = threading.Event()
        watching = threading.Thread(target=self.watch_memory, args=(ended,))
        watching.start()
        self.write('round')
        answer = self.process.stdout.readline()
        ended.set()
        watching.join()
        if answer:
            return Round(**json.loads(answer), peak_bytes=self.peak_bytes)
        self.log.seek(0)
        reason = (self.log.read().splitlines() or ['no message'])[-1][:300]
        raise UserError(f'{self.contender.name}: {reason} (exit code {self.process.wait()}); see {self.log.name}')

    def watch_memory(self, ended):
        """Notes the peak memory, read 20 times a second until the threading.Event `ended`."""
        own = [] if self.contender.function == 'contend.run_program' else [self.process]  # that only starts another
        while not ended.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):
                held = sum_memory([*own, *self.process.children(recursive=True)])
                self.peak_bytes = max(self.peak_bytes, held)

    def close(self):
        """Ends the process, and what it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (*self.process.children(recursive=True), self.process):
                each.kill()
        self.process.communicate()
        self.log.close()


def take_turns(contenders, num_rounds, log_dir):
    """Warms all contenders up, one after the other, and then runs their rounds in turn: A B A B ...

    Args:
        contenders: list of Contender. num_rounds: int, of each, after the warm-up. log_dir: see Worker.

    Returns:
        dict of name to list of Round.

    Raises:
        UserError: a contender failed; the message names it and its log.
    """
    found = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = {}
        for contender in contenders:
            workers[contender.name] = stack.enter_context(contextlib.closing(Worker(contender, log_dir)))
            workers[contender.name].run_round()
        for number in range(1, num_rounds + 1):
            for name, worker in workers.items():
                done = worker.run_round()
                print(f'  round {number}/{num_rounds}, {name}: {done.items} in {done.seconds:.2f} s', flush=True)
                found[name].append(done)
    return found
