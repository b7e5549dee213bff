"""Both READMEs and docs/: code, flags, figures, links and messages are those of the project."""
import os
import re

import pytest

from tools import write_flags

ROOT = write_flags.ROOT
READMES = ('README.md', 'README.zh-CN.md')
both_languages = pytest.mark.parametrize('readme', READMES)
PAGES = (*READMES, 'CONTRIBUTING.md', 'results/README.md',
         *(f'docs/{name}' for name in sorted(os.listdir(os.path.join(ROOT, 'docs'))) if name.endswith('.md')))
ROOMS = ('.', 'datasets', 'inference', 'training', 'report', 'tools', 'benchmarks')
FLAGS_OF_OTHERS = {'--help', '--logdir', '--count', '--saved-model', '--signature_def', '--output', '--saved_model_dir',
                   '--saved_model_signature_key', '--output_file', '--bind', '--directory'}
OF_OTHERS = ('out of memory',)  # messages that are TensorFlow's, too


def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


def modules():
    """Paths of all modules but tests, list of str."""
    return sorted(os.path.normpath(os.path.join(room, name)) for room in ROOMS
                  for name in os.listdir(os.path.join(ROOT, room))
                  if name.endswith('.py') and name not in ('__init__.py', '__main__.py'))


def significant_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def table_rows(text):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]


@both_languages
def test_the_walk_through_is_train_py_line_for_line(readme):
    code = significant_lines(read('train.py'))
    blocks = re.findall(r'```python\n(.*?)```', read(readme), re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        lines = significant_lines(block)
        assert lines[0] in code, lines[0]
        start = code.index(lines[0])
        assert code[start:start + len(lines)] == lines


@both_languages
def test_every_step_is_marked_in_train_py(readme):
    steps = re.findall(r'Step (\d):? ', read('train.py'))
    assert steps == [str(number) for number in range(1, 9)]
    assert re.findall(r'^\*\*(\d)\. ', read(readme), re.MULTILINE) == steps


def test_the_flags_page_is_what_the_script_writes():
    assert read('docs/flags.md') == write_flags.write(), 'run python tools/write_flags.py'


@pytest.mark.parametrize('page', PAGES)
def test_commands_use_flags_that_exist(page):
    """Every --flag that a page names is one of a program, or of another project's."""
    known = set(re.findall(r'^ +(--\w+)', read('docs/flags.md'), re.MULTILINE))
    assert set(re.findall(r'--[a-z][\w-]+\b(?!--)', read(page))) <= known | FLAGS_OF_OTHERS


@pytest.mark.parametrize('page', PAGES)
def test_links_resolve(page):
    """Relative links and pictures exist, and so do the headings they point at."""
    text = re.sub(r'```.*?```', '', read(page), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text):
        path, _, heading = (link[0] or link[1]).partition('#')
        if re.match('https?:', path):
            continue
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(ROOT, target)), link
        if heading:
            assert heading in headings(read(target)), link


def headings(text):
    """The names by which a page's headings are linked, set of str."""
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in
            re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


@both_languages
def test_messages_in_troubleshooting_exist(readme):
    """A message in bold code is one that the code prints; '...' stands for what varies."""
    code = ''.join(read(path) for path in modules())
    text = re.search(r'^## (?:Troubleshooting|常见问题)\n(.*?)^## ', read(readme), re.DOTALL | re.MULTILINE).group(1)
    messages = re.findall(r'\*\*`([^`]+)`\*\*', text)
    assert len(messages) >= 5
    for part in (part.strip() for message in messages for part in message.split('...') if part.strip()):
        assert part in OF_OTHERS or part in code, part


def test_contributing_lists_every_module():
    listed = re.findall(r'^\| `([\w/]+\.py)`', read('CONTRIBUTING.md'), re.MULTILINE)
    assert sorted(listed) == modules()


def test_both_readmes_have_the_same_commands_and_figures():
    """Commands, code and links are the same in both languages, apart from comments."""
    def facts(readme):
        text = read(readme)
        return (re.findall(r'^ {4}\S.*$', text, re.MULTILINE), re.findall(r'```python\n.*?```', text, re.DOTALL),
                [cells[-1] for cells in table_rows(text) if re.match(r'^[0-9.]+$', cells[-1])],
                re.findall(r'\]\((docs/[^)]+)\)', text))
    for english, chinese in zip(facts('README.md'), facts('README.zh-CN.md')):
        assert english == chinese


def test_readme_is_short():
    assert len(read('README.md').splitlines()) <= 280


def test_speed_figures_are_those_of_the_benchmarks():
    """A row of docs/speed.md has the medians of a line of results/benchmarks.md."""
    lines = [[re.sub(r' \(.*', '', cell) for cell in cells[:6]] for cells in table_rows(read('results/benchmarks.md'))]
    quoted = [cells for cells in table_rows(read('docs/speed.md'))[2:] if len(cells) == 6]
    assert len(quoted) >= 10
    for cells in quoted:
        assert cells in lines
    ratios = {cells[0]: cells[5] for cells in reversed(lines) if 'images/s' in cells[1]}  # against the fastest form
    for readme, pattern in (('README.md', r'training ([0-9.]+) times,\s+prediction ([0-9.]+) times'),
                            ('README.zh-CN.md', r'训练为 ([0-9.]+) 倍，预测为 ([0-9.]+) 倍')):
        assert [f'{ratio}x' for ratio in re.search(pattern, read(readme)).groups()] == [
            ratios['train_4'], ratios['predict']]


def test_compared_runs_are_those_of_the_results():
    """A row of docs/recipes.md has name, images and scores of a line of results/compare, with the frequent classes in
    seven columns, without them in five."""
    pages = [table_rows(read(f'results/compare/{study}.md')) for study in ('camvid', 'camvid_half', 'voc', 'voc_half')]
    lines = [[cells[i] for i in columns] for page in pages for cells in page if len(cells) == 10
             for columns in ((0, 3, 5, 6, 8), (0, 3, 5, 6, 7, 8, 9))]
    quoted = [cells for cells in table_rows(read('docs/recipes.md'))
              if len(cells) in (5, 7) and re.match('[0-9]', cells[1])]
    assert len(quoted) >= 30
    for cells in quoted:
        assert cells in lines
