"""Commands about single requests.

In reading order: `chat` sends requests to a model, and `explain` shows why a request went where it went.
"""
