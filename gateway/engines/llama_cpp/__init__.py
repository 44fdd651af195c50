"""The llama.cpp engine: `gateway backend llama-cpp --addr HOST:PORT`, one process that serves one GGUF model.

main            the process: signals, parent watch, exit codes
server          grpclib as we need it: limits, a close that flushes
dispatch        from the service's descriptor to our methods: authentication, errors, the rest UNIMPLEMENTED
service         the RPCs
options         ModelOptions   -> what to load
requests        PredictOptions -> what llama.cpp is asked, with `sampling` and `tools`
template_settings   what a request tells the chat template
forms           answers that must have a form, and tool calls that are demanded
chunks          what llama.cpp says -> text, reasoning, tool calls, counts, errors
errors          how a call fails: status, message, trailers
slots           as many calls inside llama.cpp as it has slots, never one more
generation      the bridge between a thread inside llama.cpp and the event loop
model           llama.cpp itself, through xllamacpp; `gateway.gguf` looks into the file first
text_calls      Rerank and TokenizeString: what is asked, and what is answered
infill          the prompt of a model that fills in what is missing between two texts
capabilities    from its file to what a model is made for
tiny_model      writes a model of random weights to try all this with
"""
