"""The control side of the HTTP surface: one router a noun, everything with a schema."""
