"Finding files: folders, patterns, stems, and names from other systems."
import os, time, unicodedata
from pathlib import Path

import pytest

from seglab import names
from seglab.files import UserError
from seglab.images import BadImage
from seglab.names import find_images, find_photo, list_images, pair_files
from support.data import write_photos
from support.faults import posix


def found(root, name):
    path, how = find_photo(root, name)
    assert Path(path).is_file()
    return Path(os.path.relpath(path, root)).as_posix(), how


@pytest.fixture
def root(tmp_path): return write_photos(tmp_path/'photos', ['a.png', 'B.JPG', 'é c.png', 'deep/d.png', 'deep/er/e.png', 'x/same.png', 'y/same.png', '50%.png', 'v1/0001.png', 'v2/0002.png'])


@pytest.mark.parametrize('name, want', [
    ('a.png', ('a.png', '')), ('./a.png', ('a.png', '')), ('deep/d.png', ('deep/d.png', '')), ('deep//d.png', ('deep/d.png', '')), ('50%.png', ('50%.png', '')), ('é c.png', ('é c.png', '')),
    (r'deep\d.png', ('deep/d.png', 'name_path')), (r'.\deep\er\e.png', ('deep/er/e.png', 'name_path')), ('../photos/a.png', ('a.png', 'name_path')), (r'..\photos\a.png', ('a.png', 'name_path')),
    ('deep/../a.png', ('a.png', 'name_path')), ('e\u0301 c.png', ('é c.png', 'name_accents')), ('%C3%A9%20c.png', ('é c.png', 'name_url')), ('e%CC%81%20c.png', ('é c.png', 'name_url')), ('deep%2Fd.png', ('deep/d.png', 'name_url')),
    ('a.PNG', ('a.png', 'name_case')), ('B.jpg', ('B.JPG', 'name_case')), ('deep/er/e.Png', ('deep/er/e.png', 'name_case')), ('d.png', ('deep/d.png', 'name_folder')), ('photos/a.png', ('a.png', 'name_folder')),
    ('train/deep/er/e.png', ('deep/er/e.png', 'name_folder')), ('z/x/same.png', ('x/same.png', 'name_folder')), (r'C\a.png', ('a.png', 'name_folder'))])
def test_names_that_are_found(root, name, want): assert found(root, name) == want


def test_absolute_names(root):
    assert found(root, str(root/'deep'/'d.png')) == ('deep/d.png', 'name_path')
    assert found(root, str(root/'..'/'photos'/'a.PNG')) == ('a.png', 'name_path')
    (root.parent/'link').symlink_to(root)
    assert found(root, str(root.parent/'link'/'a.png')) == ('a.png', 'name_path') and found(root.parent/'link', str(root/'a.png')) == ('a.png', 'name_path')


@pytest.mark.parametrize('name', ['/etc/passwd', '../other.png', 'a/../../x.png', r'C:\x.png', 'C:x.png', r'..\x.png', r'\\host\share\x.png', '//host/x.png', '../photos2/a.png', '..', '../photos/../x.png'])
def test_names_that_leave(root, name):
    (root.parent/'other.png').write_bytes(b''); (root.parent/'photos2').mkdir(); (root.parent/'photos2'/'a.png').write_bytes(b'')
    with pytest.raises(BadImage, match='leaves the image folder') as e: find_photo(root, name)
    assert e.value.code == 'unsafe_path' and repr(name) in str(e.value)


@pytest.mark.parametrize('name', ['none.png', 'deep/none.png', 'same.png', 'z/same.png', 'v2/0001.png', 'deep/a.png', '%2e%2e/other.png', 'n'*300, 'A.png'])
def test_names_that_are_missing(root, name):
    "The last but three: two files of that name, and a folder that is there lacks the photo, whatever others hold."
    with pytest.raises(BadImage, match='no such file') as e: find_photo(root, name)
    assert e.value.code == 'image_missing' and name[:300] in str(e.value).replace('\\\\', '\\')


@pytest.mark.parametrize('name', ['', None, 3, 'a\0.png', '\ud800.png', [], b'a.png'])
def test_names_that_are_none(root, name):
    with pytest.raises(BadImage) as e: find_photo(root, name)
    assert e.value.code == 'missing_key'


def test_a_long_name_is_said_whole(root):
    name = 'folder/' + '漢'*60 + '.png'
    with pytest.raises(BadImage, match=name): find_photo(root, name)


def test_control_characters_in_names(root):
    with pytest.raises(BadImage) as e: find_photo(root, '\x1b[2J\n.png')
    assert '\x1b' not in str(e.value) and '\n' not in str(e.value)


@posix
def test_a_backslash_can_belong_to_a_name(root):
    (root/r'w\x.png').write_bytes(b'x')
    assert found(root, r'w\x.png') == (r'w\x.png', '')


@posix
def test_a_colon_can_belong_to_a_name(root):
    (root/'a:b.png').write_bytes(b'x')
    assert found(root, 'a:b.png')[0] == 'a:b.png'
    with pytest.raises(BadImage, match='leaves the image folder'): find_photo(root, 'c:b.png')


@posix
def test_names_of_bytes(root):
    name = os.fsdecode(b'caf\xe9.png')
    try: (root/name).write_bytes(b'x')
    except OSError: pytest.skip('this disk takes no such names')
    assert find_photo(root, name) == (str(root/name), '')
    with pytest.raises(BadImage, match=r'xf2|udcf2'): find_photo(root, os.fsdecode(b'caf\xf2.png'))


# --- links

@posix
def test_links(root):
    (root.parent/'secret.png').write_bytes(b'x'); (root.parent/'outside').mkdir(); (root.parent/'outside'/'o.png').write_bytes(b'x')
    (root/'in.png').symlink_to('deep/d.png'); (root/'out.png').symlink_to(root.parent/'secret.png'); (root/'sub').symlink_to(root.parent/'outside'); (root/'dead.png').symlink_to(root/'none')
    (root/'loop.png').symlink_to(root/'loop.png')
    assert found(root, 'in.png') == ('in.png', '')
    for name in ('out.png', 'sub/o.png', r'sub\o.png', 'out.PNG'):
        with pytest.raises(BadImage, match='a link that leaves') as e: find_photo(root, name)
        assert e.value.code == 'unsafe_path'
    for name in ('dead.png', 'loop.png'):
        try: find_photo(root, name)                         # the reader says that it is missing
        except BadImage as e: assert e.code in ('unsafe_path', 'image_missing')


@posix
@pytest.mark.parametrize('root, target, ok', [
    ('hub/datasets--me--d/snapshots/1a2b', '../../blobs/beef', True), ('hub/datasets--me--d/snapshots/1a2b/images', '../../../blobs/beef', True),
    ('hub/datasets--me--d/snapshots/1a2b', '../../../datasets--you--d/blobs/beef', False), ('hub/datasets--me--d/snapshots/1a2b', '../../refs/main', False),
    ('repo/data', '../.git/annex/objects/x/y', True), ('repo/data', '../.git/config', False), ('repo/data/deep', '../../.dvc/cache/ab/cd', True), ('repo/data', '../../other/.dvc/cache/x', False),
    ('repo/data', '../blobs/x', False)])
def test_links_into_a_cache(tmp_path, root, target, ok):
    "Allowed is the store of the cache that the photo folder itself is part of, and no other."
    root = tmp_path/root
    root.mkdir(parents=True)
    blob = Path(os.path.normpath(root/target))
    blob.parent.mkdir(parents=True, exist_ok=True)
    write_photos(blob.parent, ['p.png']).joinpath('p.png').rename(blob)
    (root/'p.png').symlink_to(target)
    names._homes.cache_clear()
    if ok: assert found(root, 'p.png') == ('p.png', '')
    else:
        with pytest.raises(BadImage, match='a link that leaves'): find_photo(root, 'p.png')


# --- the list of a folder's files

def test_a_photo_that_arrives_later(root):
    with pytest.raises(BadImage): find_photo(root, 'late.png')
    write_photos(root, ['deep/late.png'])
    time.sleep(1.1)                                          # dates are asked again once a second
    assert found(root, 'late.png') == ('deep/late.png', 'name_folder')


def test_plain_names_look_through_nothing(root, monkeypatch):
    monkeypatch.setattr(names, '_look_through', lambda r: pytest.fail('looked through the folder'))
    for name in ('a.png', './a.png', r'deep\d.png', 'deep/d.png', '../photos/a.png'): find_photo(root, name)


def test_one_look_serves_all(root, monkeypatch):
    n, real = [], names._look_through
    monkeypatch.setattr(names, '_look_through', lambda r: n.append(r) or real(r))
    for f in root.rglob('*'):
        if f.is_dir(): os.utime(f, (1, 1))
    os.utime(root, (1, 1))
    names._trees.clear()
    for name in ('d.png', 'e.png', 'B.jpg', 'a.PNG')*5: find_photo(root, name)
    assert len(n) == 1


def test_a_folder_that_is_no_data_set(root, monkeypatch):
    "Names are not looked for among millions of files; those that are there are found all the same."
    monkeypatch.setattr(names, '_MOST_FILES', 3)
    names._trees.clear()
    assert found(root, 'a.png') == ('a.png', '')
    with pytest.raises(BadImage, match='no such file'): find_photo(root, 'd.png')


# --- folders, patterns, stems

def test_find_images_takes_what_is_meant(tmp_path):
    write_photos(tmp_path, ['a.jpg', 'b/c.PNG', 'b/.hidden.png', '.ipynb_checkpoints/a.png', 'b/d.webp', 'out/masks/a.png'])
    (tmp_path/'b'/'t.txt').write_text(''); (tmp_path/'odd').write_bytes(b'x')
    def of(*args, **kw): return [p.relative_to(tmp_path).as_posix() for p in find_images(*args, **kw)]
    assert of(tmp_path) == ['a.jpg', 'b/c.PNG', 'b/d.webp', 'out/masks/a.png']
    assert of(tmp_path, skip=tmp_path/'out') == ['a.jpg', 'b/c.PNG', 'b/d.webp']
    assert of([tmp_path/'b', tmp_path/'a.jpg', str(tmp_path/'*.jpg'), tmp_path/'odd']) == ['b/c.PNG', 'b/d.webp', 'a.jpg', 'odd']
    assert of(str(tmp_path/'**'/'*.webp')) == ['b/d.webp']
    for none in (tmp_path/'x.jpg', str(tmp_path/'*.gif'), tmp_path/'.ipynb_checkpoints'/'no', [tmp_path/'a.jpg', 'nothing\x1b']):
        with pytest.raises(FileNotFoundError, match='check the path') as e: find_images(none)
        assert '\x1b' not in str(e.value)


def test_a_folder_that_cannot_be_listed_is_not_skipped(tmp_path, monkeypatch):
    write_photos(tmp_path, ['a.jpg', 'b/c.png'])
    real = os.scandir
    def scandir(p):
        if str(p).endswith('b'): raise PermissionError(13, 'Permission denied', str(p))
        return real(p)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError): find_images(tmp_path)


def test_stems(tmp_path):
    write_photos(tmp_path, ['i/b.jpg', 'i/a.png', 'm/a_mask.png', 'm/b_mask.png', 'm/c.png', 'nested/x/1.png', 'nested/y/2.png', 'twins/a.jpg', 'twins/a.png', 'far/x/a.png', 'far/y/a.png', 'both/a.png', 'both/masks/a.png'])
    assert list(list_images(tmp_path/'i')) == ['a', 'b'] and list(list_images(tmp_path/'m', '_mask')) == ['a', 'b']
    assert list(list_images(tmp_path/'nested')) == ['1', '2'] and list_images(tmp_path/'both') == {'a': str(tmp_path/'both'/'a.png')}
    for folder, both in (('twins', 'a.jpg and a.png'), ('far', os.path.join('x', 'a.png'))):
        with pytest.raises(UserError, match=both): list_images(tmp_path/folder)
    with pytest.raises(FileNotFoundError, match='no folder'): list_images(tmp_path/'none')
    images, masks = pair_files(['b', 'a'], tmp_path/'i', tmp_path/'m', '_mask')
    assert [Path(p).name for p in images + masks] == ['b.jpg', 'a.png', 'b_mask.png', 'a_mask.png']
    with pytest.raises(FileNotFoundError, match="1 of 2 photos lack .*'z'"): pair_files(['a', 'z'], tmp_path/'i', tmp_path/'m', '_mask')


@posix
def test_names_in_two_spellings(tmp_path):
    "Photos, masks, their suffix, lists and groups: one letter may be one code point or two, on either side."
    one, two = 'caf\u00e9', 'cafe\u0301'
    root = write_photos(tmp_path, [f'i/{two}.png', f'm/{one}_m\u00e4sk.png', f'twins/{one}.png', f'twins/{two}.png', f'kinds/{one}.png', f'kinds/{two}.jpg'])
    if len(os.listdir(root/'twins')) < 2: pytest.skip('one file on this disk')
    assert list(list_images(root/'i')) == list(list_images(root/'m', '_ma\u0308sk')) == [one]
    for stem in (one, two): assert [Path(p).name for side in pair_files([stem], root/'i', root/'m', '_m\u00e4sk') for p in side] == [f'{two}.png', f'{one}_m\u00e4sk.png']
    with pytest.raises(UserError, match=f'expected one file for each stem; got {two}.png twice, in other code points. Keep one'): list_images(root/'twins')
    with pytest.raises(UserError, match=f'got {two}.jpg and {one}.png. Keep one|got {one}.png and {two}.jpg. Keep one'): list_images(root/'kinds')


@posix
def test_two_files_that_differ_in_the_endings_case(tmp_path):
    root = write_photos(tmp_path, ['a.png', 'a.PNG'])
    if len(os.listdir(root)) < 2: pytest.skip('one file on this disk')
    with pytest.raises(BadImage, match='no such file, and 2 others could be meant'): find_photo(root, 'a.Png')
    assert found(root, 'a.PNG') == ('a.PNG', '')
