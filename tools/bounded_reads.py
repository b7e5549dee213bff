"""Has programs that read a file in one piece, as long as the file itself says, fail instead of filling the memory."""

MAX_READ = 2 ** 20  # bytes


class BoundedReads:
    """A binary file of which nobody gets more than MAX_READ bytes at a time; all else is the file's own.

    zipfile reads an archive's whole list of members at once, and tarfile a whole extended header.
    """

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, size=-1):
        """As a file's read; ValueError if that would be more than MAX_READ bytes."""
        data = self._file.read(min(size, MAX_READ + 1) if size >= 0 else MAX_READ + 1)
        if len(data) > MAX_READ:
            raise ValueError(f'more than {MAX_READ:,} bytes where a list or a header has to be')
        return data
