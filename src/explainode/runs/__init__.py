"""Run directories: their files, several of them as one set of results, and the points of a sweep."""
