"""What a figure is, and how it is said: pure arithmetic and words. It must do no I/O."""
