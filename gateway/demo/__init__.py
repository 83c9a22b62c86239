"""`tandem demo`: the whole loop on one machine, on real parts. One file a noun; `stages` is the sequence."""
