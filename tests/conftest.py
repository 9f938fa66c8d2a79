"What holds for all tests."


def pytest_collection_modifyitems(items):
    "First what has a fixture of a minute: tests are shared out from both ends, and only so one process makes it, once."
    items.sort(key=lambda item: 'test_gpu_script' not in item.nodeid)
