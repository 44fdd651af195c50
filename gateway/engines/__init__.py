"""Backend programs that we ship: each is a process of its own and speaks `backend.Backend` only.

`llama_cpp` serves one GGUF model through llama.cpp.
"""
