#!/usr/bin/env python
"""How the prose reads, counted: for whoever writes next. It informs, and fails nobody.

    prose.py [NOTEBOOK …]     default: every notebook under nbs/, the one with most to edit first

Counted are markdown cells without code and links' targets: words that English does not use so (*stands* for is, *is no X*,
*beside*, *goes on* for resumes, *whoever*, *told*), sentences that begin with a free relative ("What no group claims …"),
*we* and *you* in 1,000 words, links in 1,000 words, words in a sentence, and chapters called by a number.
"""
import json, re, sys
from pathlib import Path
from typing import NamedTuple

import house

STRANGE = dict(stands=r'\bst(?:and|ands|ood)\b(?! alone| out)', is_no=r'\b(?:is|are|was) no(?:ne)? \w', beside=r'\bbeside\b',
               goes_on=r'\b(?:go|goes|went) on\b', whoever=r'\bwho(?:ever|soever)\b', told=r'\b(?:tells?|told)\b',
               came=r'\b(?:came|wanted)\b', relative=r'(?:^|(?<=[.!?:] ))(?:What|Who|Whatever) (?!is\b.*\?|does\b|do\b|if\b|happens\b.*\?)[^.?!]*\.',
               numbered=r'\b(?:chapter|notebook) 0?\d\b')
CODE = re.compile(r'```.*?```|`[^`\n]*`|\$[^$\n]*\$', re.S)
TARGET = re.compile(r'\]\([^)]*\)')

class Prose(NamedTuple):
    "The counts of one notebook."
    words: int
    strange: dict     # kind -> how many
    ours: float       # we and you in 1,000 words
    links: float      # in 1,000 words
    sentence: float   # words in a sentence

    @property
    def per_thousand(self): return 1e3*sum(self.strange.values())/max(self.words, 1)

def text_of(path):
    "The prose of a notebook."
    return '\n\n'.join(source for kind, source in house.cells(path) if kind == 'markdown')

def counted(text):
    "Count one text."
    links = len(TARGET.findall(CODE.sub(' ', text)))
    text = TARGET.sub(']', re.sub(r'^\|.*$', '', CODE.sub('x', text), flags=re.M))
    words = len(re.findall(r"[A-Za-z][\w'’-]*", text))
    strange = {kind: len(re.findall(pattern, text, re.M)) for kind, pattern in STRANGE.items()}
    ours = len(re.findall(r"\b(?:we|us|our|ours|you|your|yours)\b", text, re.I))
    sentences = [s for s in re.split(r'(?<=[.!?:])\s+|\n\s*\n', text) if len(s.split()) > 2]
    return Prose(words, strange, 1e3*ours/max(words, 1), 1e3*links/max(words, 1), words/max(len(sentences), 1))

def main(paths):
    nbs = house.ROOT/'nbs'
    found = {p.relative_to(nbs).as_posix() if p.is_relative_to(nbs) else p.name: counted(text_of(p))
             for p in ([Path(p).resolve() for p in paths] or house.notebooks(nbs))}
    print(f"{'notebook':24}{'words':>7}{'we, you':>9}{'links':>7}{'a sentence':>12}" + ''.join(f'{k:>10}' for k in STRANGE) + f"{'in 1,000':>10}")
    for name, p in sorted(found.items(), key=lambda x: -x[1].per_thousand):
        print(f'{name:24}{p.words:7,}{p.ours:9.1f}{p.links:7.1f}{p.sentence:12.1f}' + ''.join(f'{n:10}' for n in p.strange.values()) + f'{p.per_thousand:10.1f}')
    total = {k: sum(p.strange[k] for p in found.values()) for k in STRANGE}
    print(f"{'all':24}{sum(p.words for p in found.values()):7,}{'':28}" + ''.join(f'{n:10}' for n in total.values()))

if __name__ == '__main__': main(sys.argv[1:])
