"""Bytes to cuts: the contract that every published figure rests on. It must not know where bytes come from."""
