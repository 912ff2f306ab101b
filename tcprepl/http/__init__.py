"""The kit of everything that answers HTTP: routing, bodies, errors, authentication, channel.

`web` and `federation` build on it and it knows neither: whatever is served has the same limits,
metrics, headers and errors. May import background, metrics and below.
"""
