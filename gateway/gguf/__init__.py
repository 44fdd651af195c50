"""What a GGUF file's beginning says about the model in it, and how much memory that model takes.

errors     why a header can't be read
tensors    the tensors that a file lists: types, sizes, which layer they belong to
reader     bounded reads from a stream that may lie about every length
header     the header of one file
files      the header of a file of this machine, its further parts included
shape      the numbers of a header that decide about memory
cache      what the model remembers: the KV cache and the states of recurrent layers
compute    what it needs while it computes
estimate   all of it together, with and without GPUs
"""
