"""A family is one file. No family imports another; what two of them need lies in a room below."""
