"""Continuous batching: requests join and leave a running batch between two tokens.

engine.py joins the threads; prepare.py and grammar.py turn a request into tokens and masks; scheduler.py decides who
runs; runner.py and slots.py run it, on a GPU with blocks.py; sampler.py chooses tokens; text.py and output.py make
them text.
"""
