"""The chunk table: numbers, copies and lengths, and the look-up from a hash to them."""
