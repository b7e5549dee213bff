"""Mutated files through converter, reader and predict.py: fuzz.py, with few inputs. FUZZ_COUNT=5000 takes more."""
import os
import random

import fuzz
import numpy as np
from conftest import encode

COUNT = int(os.environ.get('FUZZ_COUNT', 180))


def test_mutated_files_are_taken_or_refused_in_one_line():
    found = fuzz.fuzz(0, COUNT, seed=0)
    assert found['bad'] == []
    assert sum(sum(outcomes.values()) for outcomes in found['counts'].values()) == COUNT
    assert len(found['counts']) == 9 and found['peak_bytes'] < fuzz.MEMORY_BOUND
    assert all(outcomes['refused'] for outcomes in found['counts'].values())  # the mutations do reach what they should
    assert sum(outcomes['taken'] for outcomes in found['counts'].values()) > COUNT // 20


def test_a_crash_is_seen_and_the_next_input_is_run(monkeypatch, tmp_path):
    script = tmp_path / 'child.py'
    script.write_text("""
import json, os, sys
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    print(json.dumps({'number': number, 'kind': 'JPEG'}), flush=True)
    if number == 1:
        os.abort()
    print(json.dumps({'outcome': 'taken', 'memory': 2 ** 40 if number == 2 else 5}), flush=True)
""")
    monkeypatch.setattr(fuzz, '__file__', str(script))
    found = fuzz.fuzz(0, 4, seed=0)
    assert found['bad'] == [[1, 'JPEG', 'crash, exit code -6'], [2, 'JPEG', 'too much memory']]
    assert found['counts']['JPEG']['taken'] == 2


def test_an_input_is_made_of_seed_and_number():
    png = encode(np.zeros((9, 9), np.uint8), format='PNG')
    made = [fuzz.mutate(png, random.Random(f'0 {number}')) for number in (1, 1, 2)]
    assert made[0] == made[1] != made[2] and fuzz.mend_png(png) == png
