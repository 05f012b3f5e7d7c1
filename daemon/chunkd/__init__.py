"""chunkd keeps the redundancy figure of a blob cache current.

The path of a blob, wing by wing:

    sources    an event or a listing says: observe this place (watch, listing; hints); the cache's thread does (cache)
    objects    the same for a bucket, and the process that reads it
    ingest     the writer decides what follows (reconcile) and carries it out (places); what must be read is a task
    worker     a confined process reads the open file: decompresses (decode), cuts and hashes (chunkers, cgear.c),
               verifies the name, and compresses 1 chunk in 16 (recompress)
    index      recipe, copies, totals, histogram and history change in one transaction (index, chunks)
    queries    the figures are read; figures says what they mean
    pulls      what a registry served, by its logs, is replayed against what the index has
    fleet      recipes go into a store that hosts share, and are merged to the figures of all of them
    api        they are asked for over a Unix socket; client asks, or reads the index where no daemon runs
    cli        and prints them; report draws them
    check      counts everything again without trusting a counter
    service    puts the parts together, as the daemon or for one scan

Read in this order: model, errors; sources/source, layouts, listing, cache; chunkers/gear, worker/decode, examine;
index/records, blocks, chunks, index; ingest/reconcile, places, writer; check/recount; service/daemon; then what is
left. DESIGN.md has the reasons.
"""

__version__ = "0.1.0"
