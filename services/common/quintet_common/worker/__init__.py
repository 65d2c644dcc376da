"""A model lives in a process of its own, joined to its service by a few messages over a socket pair.

``protocol`` has the messages, ``host`` runs an engine inside the worker process, ``process`` is the service's side: it
starts the worker, knows its state, hands it requests and restarts it.
"""
