"""The demo model: its questions, its training and its evaluation; never a part of the installed package."""
