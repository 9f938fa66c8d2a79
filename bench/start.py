#!/usr/bin/env python
"""What `import seglab` costs a fresh process, beside importing the two libraries it stands on.

    python bench/start.py [--tiny] [--repeats 11]
"""
import argparse, datetime, json, os, platform, statistics, subprocess, sys

WAYS = dict(nothing='pass', seglab='import seglab', a_name='import seglab; seglab.prepare',
            torch='import torch', plain='import torch, transformers, segmentation_models_pytorch')

def seconds(code):
    "Seconds that a statement takes in a process of its own, the interpreter's own start left out."
    child = f'import time; t = time.perf_counter(); exec({code!r}); print(time.perf_counter() - t)'
    return float(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, check=True).stdout)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=11)
    p.add_argument('--tiny', action='store_true', help='one round, without the large imports: does it run?')
    a = p.parse_args()
    ways = {k: v for k, v in WAYS.items() if not a.tiny or 'torch' not in v}
    took = {k: [] for k in ways}
    for r in range(1 if a.tiny else a.repeats + 1):                                         # the first round fills the disk's cache
        for k, code in ways.items():
            s = seconds(code)
            if r or a.tiny: took[k].append(s)
    med = {k: round(statistics.median(v), 4) for k, v in took.items()}
    for k, v in med.items(): print(f'{ways[k]:60}{1e3*v:10.1f} ms')
    print(json.dumps(dict(bench='start', date=datetime.date.today().isoformat(), machine=platform.processor() or platform.machine(), cores=os.cpu_count(),
                          python=platform.python_version(), seconds=med, statements=ways)))

if __name__ == '__main__': main()
