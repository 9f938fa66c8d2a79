"What the tests share: faults to inject, data to draw, a hub to talk to, files to break, processes to kill."
