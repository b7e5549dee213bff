"""The files of a run's folder OUT: one program at a time writes them, and what is there is whole.

Tables (log.csv, eval.csv) and TensorBoard's events grow by whole rows and events, or not at all.
"""
import contextlib
import csv
import fcntl
import io
import os
import re
import socket
import time

import tensorflow.compat.v1 as tf

import utils
from datasets import records
from training import checkpoints
from utils import UserError


@contextlib.contextmanager
def lock(train_dir):
    """Keeps a second run out of the folder. The kernel drops the lock when the program ends, in whatever way.

    Processes that are started meanwhile do not keep it: Python hands them no open files.

    Raises:
        UserError: another run has it.
    """
    with open(os.path.join(train_dir, 'lock'), 'a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f'{train_dir}: {file.read(200).strip() or "another program"} trains there; wait until it '
                            'ends, or name another --output_dir') from None
        except OSError:
            print(f'{train_dir}: this file system knows no locks; take care that no second run starts there')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield


def remove_leftovers(output_dir):
    """Removes what programs that were killed while they wrote have left behind under temporary names."""
    for folder in (os.path.join(output_dir, name) for name in ('', 'train', 'eval', 'best', 'page')):
        if os.path.isdir(folder):
            partial = [os.path.join(folder, name) for name in os.listdir(folder)
                       if (made_by := re.match(r'partial-(\d+)-', name)) and not is_alive(int(made_by.group(1)))]
            for path in partial + checkpoints.find_temporary(folder):
                os.remove(path)


def is_alive(process):
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def append(path, content):
    """Adds bytes to a file: all of them or, if the disk is full, say, none.

    Raises:
        OSError: they cannot be written.
    """
    size = os.path.getsize(path) if os.path.exists(path) else 0
    try:
        with utils.naming_file(path), open(path, 'ab') as file:
            file.write(content)
    except OSError:
        if os.path.exists(path):
            os.truncate(path, size)
        raise


# ------------------------------------------------------------------------------------------- tables


def append_row(path, values):
    """Adds one row to a table."""
    row = io.StringIO()
    csv.writer(row).writerow(values)
    append(path, row.getvalue().encode())


def keep_rows_up_to(path, columns, step):
    """Starts a table, or cuts it back: a run that resumes goes through the steps after its checkpoint again.

    Returns:
        list of the rows that stay, dict of column to str.
    """
    rows = read_rows(path, columns, step)
    with utils.whole_file(path) as partial, open(partial, 'w', newline='') as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return rows


def read_rows(path, columns, step):
    """The rows of a table up to a step that are whole, list of dict of column to str; none where there is no table."""
    if not os.path.exists(path):
        return []
    with open(path, newline='') as file:
        lines = (line.replace('\0', '') for line in file)  # what a power cut may leave at the end
        return [row for row in csv.DictReader(lines)
                if set(row) == set(columns) and all(row.values())
                and row['step'].isdecimal() and int(row['step']) <= step]


# ------------------------------------------------------------------------------------------- TensorBoard


class EventWriter:
    """Writes what TensorBoard reads, as tf.summary.FileWriter does, event by event.

    tf.summary.FileWriter says nothing when the disk is full, and leaves half an event at the end of its file; then, or
    when the program is killed. Here each event is in the file when `add` returns, whole.
    """

    def __init__(self, folder, graph):
        self.path = os.path.join(folder, f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}')
        self.add(tf.Event(file_version='brain.Event:2'))
        self.add(tf.Event(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString()))

    def add(self, event):
        """Writes a tf.Event; OSError if it cannot be."""
        event.wall_time = time.time()
        framed = io.BytesIO()
        records.write_example(framed, event.SerializeToString())  # event files are framed as records are
        append(self.path, framed.getvalue())

    def add_summary(self, summary, step):
        """Writes a tf.Summary, or one that is serialised, of a step."""
        if isinstance(summary, bytes):
            summary = tf.Summary.FromString(summary)
        self.add(tf.Event(summary=summary, step=step))

    def start_at(self, step):
        """Has TensorBoard take what comes in place of what earlier files have from that step on."""
        self.add(tf.Event(session_log=tf.SessionLog(status=tf.SessionLog.START), step=step))
