"""The caps that hold where no setting says otherwise; `model.Caps` says what they are. Apart from it to be light."""

UNCOMPRESSED_BYTES = 256 << 30
RATIO = 2000
ZSTD_WINDOW_BYTES = 128 << 20
