"""Asks a daemon, or the index where no daemon answers. It must not know what is done with the answer."""
