"""The wire, sans-I/O (protocol.md sections 3 to 6, 9 and 12).

Bytes become commands and commands become bytes, and a session knows what is legal when.
Nothing here owns a socket, reads a clock, logs or imports Twisted: time is an argument and
output is a return value. Only the standard library and the three ground modules are used.

It promises that any bytes give events or a documented error, whatever their
fragmentation, in linear time and bounded memory.
"""
