"The basement: text, names, JSON, CSV, one writer at a time."
import csv, io, os, pickle, unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from seglab import files
from seglab.files import (UserError, ahead, as_text, did_you_mean, file_name, folder_names, inside, jsonable, machine, md, md_table, mistake, name_key,
                          new_folder, number, one_line, progress_bar, read_csv, read_json, sweep, to_csv, to_json, unique_names, utf8, versions,
                          write_atomic, write_csv, write_json, write_text)

quiet = settings(max_examples=200, deadline=None, derandomize=True)
any_text = st.text(st.characters(codec=None), max_size=30)      # lone surrogates too


@quiet
@given(any_text)
def test_text_reaches_no_terminal_raw(s):
    for out in (as_text(s), one_line(s)):
        out.encode()                                          # raises where it cannot
        assert not [c for c in out if unicodedata.category(c) in ('Cc', 'Cs') and c not in '\n\t' or c in '\u2028\u2029\u202e\u2066\u200f']
    assert '\n' not in one_line(s) and '\t' not in one_line(s)
    utf8(s).encode()
    assert utf8(s) == s or not s.isascii()


@pytest.mark.parametrize('s, shown', [('caf\udce9', r'caf\udce9'), ('\x1b[2J', r'\x1b[2J'), ('\x9b2J\x85', r'\x9b2J\x85'), ('\x7f', r'\x7f'), ('a\rb', r'a\x0db'),
                                      ('\u202egnp.exe', r'\u202egnp.exe'), ('a\nb\tc', 'a\nb\tc'), ('10\u202fAM é 漢 👩‍🚀', '10\u202fAM é 漢 👩‍🚀')])
def test_what_is_spelled_out(s, shown): assert as_text(s) == shown


def test_one_form_of_mistake():
    assert str(mistake('size_hw', (0, 5), 'two numbers', 'Give 256.', 'a zero')) == 'size_hw=(0, 5): expected two numbers; got a zero. Give 256.'
    assert str(mistake('out', 'a\n\x1b[2J' + 'x'*999, 'a folder')).count('\n') == 0
    assert len(str(mistake('x', np.zeros((50, 50)), 'less'))) < 300
    assert isinstance(mistake('a', 1, 'b'), UserError) and issubclass(UserError, ValueError)
    assert pickle.loads(pickle.dumps(mistake('a', 1, 'b'))).args == mistake('a', 1, 'b').args


def test_guesses(): assert did_you_mean('trian', ['train', 'check']) == " (did you mean 'train'?)" and did_you_mean('x', ['train']) == ''


def test_markdown():
    assert md('<b>|`x`\n[y](z)') == r'&lt;b&gt;\|\`x\` \[y\](z)'
    assert number(None) == number(float('nan')) == number(float('inf')) == '–' and number(1234.5, 1) == '1,234.5'
    assert md_table(['a|b', 'c'], [[1, '\x1b']]).splitlines() == [r'| a\|b | c |', '|:---|---:|', r'| 1 | \\x1b |']


# --- writing

def test_write_atomic_replaces_and_keeps_the_mode(tmp_path):
    old = os.umask(0o027)
    try: write_atomic(tmp_path/'a', b'1')
    finally: os.umask(old)
    assert os.name == 'nt' or (tmp_path/'a').stat().st_mode & 0o777 == 0o640
    write_atomic(str(tmp_path/'a'), memoryview(b'22'))
    assert (tmp_path/'a').read_bytes() == b'22' and os.listdir(tmp_path) == ['a']
    write_text(tmp_path/'t', 'é\udce9\n')
    assert (tmp_path/'t').read_bytes() == 'é\\udce9\n'.encode()


def test_write_atomic_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomic('x', b'1')
    assert os.listdir() == ['x']


def test_write_atomic_takes_no_file_of_anothers(tmp_path, monkeypatch):
    "A temporary name that is taken is not written into."
    monkeypatch.setattr(files, '_temporary', lambda path: tmp_path/'.tmp-taken')
    (tmp_path/'.tmp-taken').write_text('mine')
    with pytest.raises(FileExistsError): write_atomic(tmp_path/'a', b'1')


def test_new_folder_replaces_anything(tmp_path):
    (tmp_path/'secret').mkdir(); (tmp_path/'secret'/'s').write_text('x')
    for before in ('nothing', 'folder', 'file', 'link'):
        path = tmp_path/before
        if before == 'folder': path.mkdir(); (path/'old').write_text('1')
        if before == 'file': path.write_text('1')
        if before == 'link': path.symlink_to(tmp_path/'secret')
        with new_folder(path) as d: (d/'new').write_text('2')
        assert os.listdir(path) == ['new'] and not path.is_symlink()
    assert (tmp_path/'secret'/'s').read_text() == 'x'
    assert not [n for n in os.listdir(tmp_path) if n[0] == '.']


def test_new_folder_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError):
        with new_folder(tmp_path/'a'/'b'/'c') as d:
            (d/'x').write_text('1')
            raise KeyError
    assert os.listdir(tmp_path) == []


def test_sweep(tmp_path):
    (tmp_path/'.tmp-1').write_text(''); (tmp_path/'.tmp-2').mkdir(); (tmp_path/'.tmp-3').symlink_to(tmp_path)
    for n in ('.old-a', '.old-b', 'b'): (tmp_path/n).mkdir(); (tmp_path/n/n).write_text('')
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['a', 'b'] and os.listdir(tmp_path/'a') == ['.old-a'] and os.listdir(tmp_path/'b') == ['b']


# --- names

@quiet
@given(any_text)
def test_any_text_makes_a_file_name(s):
    n = file_name(s)
    assert n and len(n.encode()) <= 121 and not set(n) & set('/\\:*?"<>|\0\n') and n[-1] not in '. ' and n not in ('.', '..')
    assert file_name(n) == n


@pytest.mark.parametrize('s, n', [('caf\udce9', 'caf_udce9'), ('NUL.txt', '_NUL.txt'), ('com1', '_com1'), ('a/b\\c', 'c'), ('..', 'file'), ('', 'file'),
                                  ('漢'*85, '漢'*40), ('x'*300, 'x'*120), ('a b(1)+=@.', 'a b(1)+=@')])
def test_file_names(s, n): assert file_name(s) == n


def test_long_names_fit_a_disk(tmp_path):
    stems = unique_names([file_name('漢'*85), file_name('漢'*85)], ['a', 'b'])
    for s in stems: write_atomic(tmp_path/f'{s}.png', b'')
    assert len(os.listdir(tmp_path)) == 2


@quiet
@given(st.lists(st.sampled_from(['a', 'A', 'é', 'e\u0301', 'É', 'ß', 'ss', 'b', 'c']), max_size=12))
def test_unique_names_differ_everywhere(names):
    out = unique_names(names)
    assert len({name_key(n) for n in out}) == len(names)
    keys = [name_key(n) for n in names]
    assert all(o == n for o, n, k in zip(out, names, keys) if keys.count(k) == 1)


def test_unique_names_are_stable():
    "These stems are in prepared folders: they never change."
    assert unique_names(['a', 'b', 'A'], ['x/a', 'b', 'y/A']) == ['a_6d4b7662', 'b', 'A_b1a1e333']
    assert list(folder_names(['x/m', 'y/m'])) == ['x/m', 'y/m'] and len(set(folder_names(['x/m', 'y/m']).values())) == 2


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', r'C:\x', 'C:x', r'..\x', r'a\..\..\x', 'a/../../x', r'\\host\x', '', None, 3, 'a\0b', '..'])
def test_what_leaves_a_folder(tmp_path, name): assert inside(tmp_path, name) is None


def test_what_stays_inside(tmp_path):
    (tmp_path/'d').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'d'); (tmp_path/'out').symlink_to('/')
    for n in ('a', 'd/x', 'link/x', './a', 'caf\udce9'): assert inside(tmp_path, n) == tmp_path/n
    assert inside(tmp_path, 'out/etc') is None


# --- JSON and CSV

def test_json_of_anything(tmp_path):
    x = {1: np.float32('nan'), 'a': np.arange(3), 'big': 2**130, 'neg': -2**70, 'p': Path('x'), 's': {3, 1}, 't': (1, None), 'n': 'caf\udce9', 'inf': [float('inf')]}
    assert jsonable(x) == {'1': None, 'a': [0, 1, 2], 'big': 2**130, 'neg': -2**70, 'p': 'x', 's': [1, 3], 't': [1, None], 'n': 'caf\\udce9', 'inf': [None]}
    write_json(tmp_path/'x.json', x)
    assert read_json(tmp_path/'x.json') == jsonable(x)
    assert to_json({'é': 1}, 2) == '{\n  "é": 1\n}\n'.encode()


@pytest.mark.parametrize('data', [b'', b'{', b'[]', b'"x"', b'null', b'{"a": NaN}', b'\xff\xfe{}', b'['*100_000, b'{"a": "\xe9"}', b'{}{}'])
def test_json_that_is_none_of_ours(tmp_path, data):
    (tmp_path/'x\x1b.json').write_bytes(data)
    with pytest.raises(UserError, match=r'x\\x1b.json: expected JSON.*Prepare again') as e: read_json(tmp_path/'x\x1b.json', todo='Prepare again.')
    assert '\n' not in str(e.value) and len(str(e.value)) < 600


def test_json_from_windows(tmp_path):
    (tmp_path/'x.json').write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path/'x.json') == {'a': 'é'}
    with pytest.raises(FileNotFoundError): read_json(tmp_path/'none.json')


cells = st.text(st.characters(codec='utf-8'), max_size=12) | st.sampled_from(['=1+1', "'=x", "''@", "'a", '-', '+', '\t', '007', 'nan', 'None', 'a,"\r\nb', '＝1', '\u202e'])


@quiet
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_csv_gives_text_back(rows):
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        write_csv(Path(d)/'t.csv', ['id', '=a', 'b'], [[i, *r] for i, r in enumerate(rows)])
        raw = list(csv.reader(io.StringIO((Path(d)/'t.csv').read_bytes().decode(), newline='')))
        assert not [c for row in raw for c in row if c[:1] in ('=', '+', '-', '@', '\t', '\r', '＝')]       # nothing a spreadsheet runs
        table = read_csv(Path(d)/'t.csv', "'=a", 'b')
    assert list(table.columns) == ['id', '=a', 'b'] and table['id'].tolist() == list(range(len(rows)))
    spelled = [[files._IN_CSV.sub(files._spelled, c) for c in r] for r in rows]
    assert [list(r) for r in zip(table['=a'], table['b'])] == spelled


def test_csv_of_numbers_and_nothing(tmp_path):
    assert to_csv(['a', 'b'], [[1, None], [.5, float('nan')], [-3, np.float64(.25)]]) == b'a,b\n1,\n0.5,\n-3,0.25\n'
    (tmp_path/'t.csv').write_bytes(b'\xef\xbb\xbfa,b\n1,x\n')
    assert read_csv(tmp_path/'t.csv')['a'].tolist() == [1]
    for data in (b'', b'a,b\n"x', b'\xff\xfe\n'):
        (tmp_path/'t.csv').write_bytes(data)
        with pytest.raises(UserError, match='t.csv: expected CSV') as e: read_csv(tmp_path/'t.csv')
        assert '\n' not in str(e.value)


def test_one_name_is_spelled_one_way(tmp_path):
    "The same file name in a message, a table and a JSON file."
    name = 'caf\udce9'
    write_csv(tmp_path/'t.csv', ['n'], [[name]])
    assert as_text(name) == read_csv(tmp_path/'t.csv', 'n')['n'][0] == jsonable(name) == utf8(name)


# --- work and progress

def test_ahead_is_bounded_and_in_order():
    taken = []
    def items():
        for i in range(50): taken.append(i); yield i
    with ThreadPoolExecutor(4) as pool:
        results = ahead(pool, lambda x: x*x, items(), 5)
        assert next(results) == 0 and len(taken) <= 6
        for n, x in enumerate(results, 1): assert x == n*n and len(taken) <= n + 6
        assert n == 49
        assert sorted(ahead(pool, lambda x: x, range(20), 3, ordered=False)) == list(range(20))
        with pytest.raises(ZeroDivisionError): list(ahead(pool, lambda x: 1/x, [2, 1, 0, 3], 2))
        assert list(ahead(pool, int, [], 3)) == []


def test_what_ran(monkeypatch):
    assert versions('numpy', 'no-such-package')['no-such-package'] is None and 'torch' in versions()
    assert machine().endswith('cores') or machine().endswith('core')
    assert files.cores() >= 1


def test_no_bar_in_a_log(capsys):
    assert list(progress_bar(range(3), desc='count', delay=0)) == [0, 1, 2]
    assert capsys.readouterr().err == ''
    list(progress_bar(range(3), desc='count', show=True, delay=0))
    assert 'count' in capsys.readouterr().err


def grown(path):
    with files.growing(path) as f: f.write(b'1')


@pytest.mark.parametrize('make', [lambda p: files.write_atomic(p, b'1'), lambda p: files.write_json(p, {}), grown, lambda p: files.new_folder(p).__enter__(),
                                  lambda p: files.check_out(p), lambda p: files.check_out(p, 'mark.json')])
def test_a_link_to_nothing_is_not_replaced(make, tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'gone')
    with pytest.raises(UserError, match="out=.*a link to nothing"):
        make(tmp_path/'link')
    assert os.readlink(tmp_path/'link') == str(tmp_path/'gone') and os.listdir(tmp_path) == ['link']


def test_whose_folder_it_is(tmp_path):
    files.check_out(tmp_path, 'mark.json'); files.check_out(tmp_path/'new', 'mark.json')
    (tmp_path/'thesis.tex').touch()
    for out in (tmp_path, tmp_path/'thesis.tex'):
        with pytest.raises(UserError, match='out='): files.check_out(out, 'mark.json')
    (tmp_path/'mark.json').touch()
    files.check_out(tmp_path, 'mark.json')


@pytest.mark.parametrize('mark', ['', 'mark.json'])
def test_a_folder_cannot_be_made_there(tmp_path, mark):
    "A file, a path below one, a link to nothing or below it; other folders will do, and nothing is made."
    (tmp_path/'file').touch(); (tmp_path/'gone').symlink_to(tmp_path/'nothing'); (tmp_path/'full').mkdir(); (tmp_path/'full'/'x').touch()
    for out in ('file', 'file/a/b', 'gone', 'gone/a'):
        with pytest.raises(UserError, match='out=.*expected a free name; got a file, or a link to nothing. Give'): files.check_out(tmp_path/out, mark)
    for out in ('new', 'new/a', 'full/new', *['full']*(mark == '')): files.check_out(tmp_path/out, mark)
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['file', 'full', 'gone', 'x']
