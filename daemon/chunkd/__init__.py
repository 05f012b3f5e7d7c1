"""chunkd keeps the redundancy figure of a blob cache current.

The path of a blob:

    scan, watch    a folder's listing, or an event, says: look at this place        (scanner decides when to list)
    hint_queue        the hint waits, one entry a place
    compare        a listing that differs from the index gives hints as well
    look           the disk and the index are asked what there is to do             (holdings changes places)
    ingest, pool   a job goes to an idle worker process, which may read and no more (confine; wire: what they say)
    worker         decode opens and decompresses it, chunker (cgear.c) cuts and hashes it, the name is verified
                   and 1 chunk in 16 is compressed                                  (recompress; saving: what for)
    ingest, index  recipe, counts and totals change in one transaction              (lookup: hash to number)
                   and with them the histogram and the history                      (counting, measured; history)
    answers        the figures are read                                             (endpoint, client: the socket)
    cli, text      and shown                                                        (page: HTML)

Read in this order: model, errors; layouts, scan; chunker, decode, worker; records, blocks, entries, lookup, chunks,
numbering, index, recount; holdings, look, ingest; scanner, service; then what is left. DESIGN.md has the reasons.
"""

__version__ = "0.1.0"
