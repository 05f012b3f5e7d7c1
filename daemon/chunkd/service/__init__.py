"""The parts put together and run, as the daemon or once. It must not know the command line; only `daemon` makes
threads.
"""
