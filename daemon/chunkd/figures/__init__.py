"""The figures and their wording: pure arithmetic and text. It must do no I/O."""
