"""SIGHUP: the settings are read again, and those that can change in a running daemon do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from chunkd.errors import ChunkdError
from chunkd.ingest.writer import Writer
from chunkd.settings.config import Config
from chunkd.settings.table import SETTINGS
from chunkd.sources.scanner import Scanner

log = logging.getLogger(__name__)

# The others are of caches, workers, addresses and the rules of the index, which are set up at the start.
CHANGEABLE = ("scan_interval_s", "polled_scan_interval_s", "verify_interval_s", "log_level")


def reload(config: Config, read_again: Callable[[], Config], scanner: Scanner, writer: Writer) -> Config:
    """The settings that are in force afterwards: those that can change have, and the log names them, and what needs a
    restart. If the settings can't be read or are wrong, all stay as they were, and the log says why.
    """
    try:
        new = read_again()
    except ChunkdError as error:
        log.error("settings: kept as they were: %s", error)
        return config
    values = {name: getattr(new, name) for name in SETTINGS if getattr(new, name) != getattr(config, name)}
    changed = {name: values[name] for name in CHANGEABLE if name in values}
    # Logged before the level may hide it.
    for name, value in changed.items():
        log.info("settings: %s is now %s", name, value)
    if later := sorted(values.keys() - changed.keys()):
        log.warning("settings: %s changed, which needs a restart", ", ".join(later))
    config = dataclasses.replace(config, **changed)
    scanner.scan_s = config.scan_interval_s
    writer.verify_round.interval_s = config.verify_interval_s
    for cache in writer.caches.values():
        cache.polled_s = config.polled_scan_interval_s
    logging.getLogger().setLevel(config.log_level.upper())
    return config
