"""Packaging: everything is read from settings.ini, the one source of name, version, requirements and commands."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = config['DEFAULT']

def listed(key): return cfg.get(key, '').split()

extras = {key.removesuffix('_requirements'): listed(key) for key in cfg if key.endswith('_requirements')}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['doc_host'] + cfg['doc_baseurl'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url'],
                  'Changes': cfg['git_url'] + '/blob/main/CHANGELOG.md', 'Issues': cfg['git_url'] + '/issues'},
    license='MIT',
    keywords=cfg['keywords'],
    packages=find_packages(include=['seglab', 'seglab.*']),
    package_data={cfg['lib_name']: ['*.jinja']},
    python_requires='>=' + cfg['min_python'],
    install_requires=listed('requirements'),
    extras_require=extras,
    entry_points={'console_scripts': listed('console_scripts'), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Natural Language :: English', 'Operating System :: OS Independent',
                 'Topic :: Scientific/Engineering :: Image Recognition',
                 *(f'Programming Language :: Python :: {v}' for v in ('3', '3.11', '3.12', '3.13', '3.14'))],
    zip_safe=False,
)
