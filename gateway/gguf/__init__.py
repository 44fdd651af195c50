"""Reads what the beginning of a GGUF file says about its model, and estimates how much memory that model takes.

errors     the errors of a broken header
tensors    the tensors that a file lists: types, sizes, layers
reader     bounded reads from a stream whose lengths may be wrong
header     the header of one file
files      the header of a file on this machine, with its further parts
shape      the numbers of a header that decide about memory
cache      the memory of requests: the KV cache and the states of recurrent layers
compute    the memory of a computation
estimate   all of it together, with and without GPUs
"""
