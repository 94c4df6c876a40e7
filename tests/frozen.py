"""Imported last by the server that forks child processes: what the imports made is no garbage to walk through.

transformers' Trainer collects garbage after every training.
"""

import gc

gc.collect()
gc.freeze()
