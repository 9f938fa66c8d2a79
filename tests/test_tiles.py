"Tiles: weights that sum to one, the same answer as the whole photo, and bounded memory."
import json, os, subprocess, sys, textwrap
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from seglab import cli
from seglab.card import model_card
from seglab.dataset import load_data, train_tfms, valid_tfms
from seglab.files import UserError
from seglab.masks import prepare
from seglab.model import Segmenter, evaluating
from seglab.runs import Run
from seglab.sample import make_sample
from seglab.share import export_onnx, predict_files
from seglab.tiles import predict_tiled, stream_tiles, tile_axis
from seglab.train import fit
from support.faults import LONG

def convolutions():
    "A net that sees two pixels far: a quarter of the overlap is enough for it."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))

def noise(h, w): return np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.sampled_from([64, 96, 128, 256, 512]), st.floats(0, .5), st.sampled_from([32, 64]))
def test_weights_sum_to_one(length, tile, share, divisor):
    total = np.zeros(length)
    for t in tile_axis(length, tile, int(share*tile), divisor):
        assert t.start % divisor == 0 and len(t.weights) == t.stop - t.start <= max(tile, length if length <= tile else tile)
        total[t.start:t.stop] += t.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)

@pytest.mark.parametrize('size_hw', [(1, 1), (31, 517), (509, 613), (640, 127), (1021, 89)])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_equals_the_whole(size_hw, batch_size):
    net = convolutions()
    photo = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), np.uint8)
    def ask(x):
        with torch.inference_mode(): return net(x.float()/255)
    want, got, times = ask(torch.from_numpy(photo).permute(2, 0, 1)[None])[0], torch.full((5, *size_hw), torch.nan), torch.zeros(size_hw)
    for top, left, block in stream_tiles(ask, photo, 128, batch_size=batch_size):
        got[:, top:top + block.shape[1], left:left + block.shape[2]] = block
        times[top:top + block.shape[1], left:left + block.shape[2]] += 1
    assert (times == 1).all()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)

@pytest.mark.skipif(sys.platform != 'linux', reason='reads peak memory as Linux reports it')
def test_a_huge_photo_takes_bounded_memory(tmp_path):
    side, most = (20_000, 1024) if LONG else (5_000, 200)             # MiB; the logits of the small one take 286
    code = textwrap.dedent(f'''
        import resource, numpy as np, torch
        from torch import nn
        from seglab.model import Segmenter
        from seglab.tiles import predict_tiled
        photo = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (1, {side}, 3), np.uint8), ({side}, {side}, 3))
        out = np.memmap('out.bin', np.uint8, 'w+', shape=({side}, {side}))
        model = Segmenter(nn.Conv2d(3, 3, 1), ['a', 'b', 'c'])
        predict_tiled(model, photo[:600, :600], 512)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        predict_tiled(model, photo, 512, out=out)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**10)
    ''')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < most

# ---------------------------------------------------------------- a Segmenter with a tile

NAMES = list('abcde')

@pytest.fixture(scope='module')
def pair():
    "The same net with a tile and without."
    return Segmenter(convolutions(), NAMES, tile=64).eval(), Segmenter(convolutions(), NAMES).eval()

def test_every_road_goes_by_tiles(pair, tmp_path, monkeypatch):
    tiled, whole = pair
    a, b, small = noise(97, 211), noise(130, 65), noise(40, 64)
    for i, x in enumerate((a, b, small)): Image.fromarray(x).save(tmp_path/f'{i}.png')
    seen = []
    monkeypatch.setattr(Segmenter, 'normalize', lambda self, x, real=Segmenter.normalize: seen.append(tuple(x.shape[-2:])) or real(self, x))
    def asked(f):
        seen.clear()
        out = f(tiled)
        assert max(max(hw) for hw in seen) <= 64, seen
        seen.clear()
        return out, f(whole)
    for f in (lambda m: [m.predict(a)], lambda m: m.predict([a, a, b, small]), lambda m: list(m.predict(tmp_path).values()), lambda m: [m.predict(a/255.)],
              lambda m: [m.predict_logits(b).argmax(0).numpy()], lambda m: list(m.predict_masks(torch.from_numpy(np.stack([a, a])).permute(0, 3, 1, 2)).numpy()),
              lambda m: list(m.predict_masks(torch.from_numpy(a).permute(2, 0, 1)[None], (50, 70)).numpy())):
        got, want = asked(f)
        assert len(got) == len(want)
        for x, y in zip(got, want): assert x.shape == y.shape and (x == y).mean() > .999
    x = torch.from_numpy(np.stack([a, a])).permute(0, 3, 1, 2)
    with torch.no_grad(): got, want = asked(lambda m: m.predict_batch(x))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert tiled.predict_batch(x).requires_grad                                              # and can be trained through

def test_blocks_cover_the_photo_once(pair):
    for model in pair:
        times, x = torch.zeros(97, 211), torch.from_numpy(noise(97, 211)).permute(2, 0, 1)
        with evaluating(model):
            for top, left, block in model.predict_blocks(x): times[top:top + block.shape[1], left:left + block.shape[2]] += 1
        assert (times == 1).all()

def test_files_are_predicted_by_tiles(pair, tmp_path):
    Image.fromarray(noise(97, 211)).save(tmp_path/'a.png')
    done = predict_files(pair[0], tmp_path/'a.png', tmp_path/'out', values='class_index')
    assert np.array_equal(np.array(Image.open(tmp_path/'out'/'masks'/'a.png')), pair[0].predict(tmp_path/'a.png')) and len(done.done) == 1

def test_a_tile_is_saved_with_the_model_and_told_to_others(pair, tmp_path):
    tiled = pair[0]
    folder = tiled.save_pretrained(tmp_path/'m')
    assert json.loads((folder/'seglab.json').read_text())['tile'] == 64
    back = Segmenter.from_pretrained(folder, net=convolutions())
    assert back.tile == 64 and np.array_equal(back.predict(noise(97, 211)), tiled.predict(noise(97, 211)))
    for text in ('in tiles of 64×64', 'start at multiples of 32'): assert text in model_card(tiled), text
    said = json.loads((folder/'seglab.json').read_text())
    del said['tile']                                                                         # saved before tiles were there
    (folder/'seglab.json').write_text(json.dumps(said))
    assert Segmenter.from_pretrained(folder, net=convolutions()).tile is None

def test_a_tile_wins_over_a_size_that_is_set_later(pair, tmp_path):
    model = Segmenter(convolutions(), NAMES, size_hw=32)
    model.tile = 64
    assert model.input_hw is None and np.array_equal(model.predict(noise(40, 50)), pair[1].predict(noise(40, 50)))
    assert Segmenter.from_pretrained(model.save_pretrained(tmp_path/'m'), net=convolutions()).tile == 64

@pytest.mark.parametrize('tile', [0, 63, 100, -64, True, 64., '64', 1 << 15])
def test_tiles_that_cannot_work(tile, pair):
    with pytest.raises(UserError, match='tile=.*multiple of 32'): Segmenter(convolutions(), NAMES, tile=tile)
    with pytest.raises(UserError, match='multiple of 32'): predict_tiled(pair[1], noise(70, 70), tile)

def test_the_onnx_graph_answers_one_tile(pair, tmp_path):
    import onnxruntime
    session = onnxruntime.InferenceSession(str(export_onnx(pair[0], tmp_path/'m.onnx', sizes=((1, 64, 64), (2, 40, 64)))))
    about = session.get_modelmeta().custom_metadata_map
    assert about['tile'] == '64' and 'tile_axis(length, 64, 16, 32)' in about['tiling'] and 'tiles of at most 64x64' in about['input'] and pair[0].tile == 64
    photo, out = noise(97, 150), np.zeros((5, 97, 150), np.float32)
    for row in tile_axis(97, 64, 16, 32):                                                    # as the metadata say
        for col in tile_axis(150, 64, 16, 32):
            x = photo[row.start:row.stop, col.start:col.stop].transpose(2, 0, 1)[None]
            out[:, row.start:row.stop, col.start:col.stop] += session.run(None, {'pixel_values': x})[0][0]*row.weights[:, None]*col.weights
    assert (out.argmax(0) == pair[0].predict(photo)).mean() > .999

# ---------------------------------------------------------------- training on pieces

def test_pieces_are_cut_at_the_photos_own_scale():
    photo, mask = noise(300, 420), np.arange(300*420, dtype=np.uint32).reshape(300, 420).astype(np.uint8) % 250
    cut = train_tfms(64, zoom=(1, 1), flip=0, light=0, native=True)
    for seed in range(20):
        cut.set_random_seed(seed)
        piece = cut(image=photo, mask=mask)
        tops, lefts = np.nonzero((photo[:237, :357] == piece['image'][0, 0]).all(-1))
        at = [(y, x) for y, x in zip(tops, lefts) if np.array_equal(photo[y:y + 64, x:x + 64], piece['image'])]
        assert len(at) == 1 and np.array_equal(mask[at[0][0]:at[0][0] + 64, at[0][1]:at[0][1] + 64], piece['mask'])

@pytest.mark.parametrize('zoom', [(.5, 2.), (.8, 2.), (1, 1.5)])
def test_the_zoom_of_pieces_is_that_of_the_photo(zoom):
    stripes = np.repeat(np.arange(200) % 2, 10).astype(np.uint8)[None].repeat(1500, 0)              # 10 pixels wide
    cut, widths = train_tfms(256, zoom, flip=0, light=0, native=True), []
    for seed in range(60):
        cut.set_random_seed(seed)
        out = cut(image=np.zeros((1500, 2000, 3), np.uint8), mask=stripes)['mask']
        widths.append(256 / (np.diff(out[0].astype(int)) != 0).sum() / 10)
    assert .93*zoom[0] < min(widths) < zoom[0] + .25*(zoom[1] - zoom[0]) and zoom[1] - .4*(zoom[1] - zoom[0]) < max(widths) < 1.08*zoom[1]

def test_small_photos_get_a_rim_of_ignore():
    photo, mask = noise(40, 300), np.ones((40, 300), np.uint8)
    for tfms in (train_tfms(64, native=True), valid_tfms(64, 'native')):
        out = tfms(image=photo, mask=mask)
        assert out['image'].shape == (64, 64, 3) and set(np.unique(out['mask'])) == {1, 255}
    middle = valid_tfms(64, 'native')(image=noise(200, 301), mask=np.zeros((200, 301), np.uint8))['image']
    assert np.array_equal(middle, noise(200, 301)[68:132, 118:182])

@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A prepared folder of photos of many sizes, as they are."
    root = tmp_path_factory.mktemp('large')
    parts = [make_sample(root/f'raw{h}', n=6, size_hw=(h, 150), seed=h) for h in (50, 140)]
    files, photos = zip(*[(p/'annotations'/'instances_sample.json', p/'sample') for p in parts])
    return prepare(list(files), list(photos), root/'prepared', size_hw=None).path

def test_a_model_with_a_tile_trains_on_pieces(large, tmp_path):
    with pytest.raises(UserError, match=r'size_hw=None: expected 256, say, or a tile=512; got \d+ sizes'): load_data(large)
    with pytest.raises(UserError, match=r'tile=64: expected None next to size_hw=32'): load_data(large, size_hw=32, tile=64)
    data = load_data(large, 'things', tile=64)
    assert {tuple(d[i]['labels'].shape) for d in data for i in range(len(d))} == {(64, 64)}
    image, labels = data.val.raw(0)
    assert np.array_equal(data.val[0]['labels'], valid_tfms(64, 'native')(image=image, mask=labels)['mask'])   # nothing is resized
    def train(data): return fit(Segmenter(nn.Conv2d(3, 2, 1), data.label_space, tile=64), large, epochs=1, out=tmp_path/'run', progress=False, pictures=0, workers=0)
    torch.manual_seed(0)
    run = train(data)
    model = Segmenter.from_pretrained(run.best, net=nn.Conv2d(3, 2, 1))
    assert run.finished and model.tile == 64 and model.size_hw is None
    assert model.predict(noise(140, 150)).shape == (140, 150)

def test_the_shell_trains_on_pieces(large, tmp_path, capsys):
    asked = ['train', str(large), str(tmp_path/'run'), '--tile', '64', '--epochs', '1', '--classes', 'things', '--weights', 'none', '--encoder-name', 'tu-mobilenetv3_small_050']
    assert cli.main(asked) == 0 and Run(tmp_path/'run').load().tile == 64
    assert cli.main(asked) == 0 and 'nothing was trained' in capsys.readouterr().out
    assert cli.main([*asked[:2], str(tmp_path/'other'), '--tile', '100', '--weights', 'none']) == 1
    assert '--tile 100: expected a multiple of 32 pixels' in capsys.readouterr().err
