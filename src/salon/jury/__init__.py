"""One protocol for every family: it sees `sample` and no family by name."""
