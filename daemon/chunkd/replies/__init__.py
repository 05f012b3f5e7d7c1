"""What a daemon or an index answers, as types of plain JSON objects: a name ends with its unit, a time is RFC 3339 in
UTC, None means unknown or none. They may import nothing of chunkd, as whoever asks or answers needs them.
"""
