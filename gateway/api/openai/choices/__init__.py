"""The choices of one request: several answers to a prompt, and several prompts.

requested   which generations a request asks for
at_once     calls to backends, a few at the same time
streams     several streams as the choices of one
"""
