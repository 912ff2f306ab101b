"""The specification as a tool: protocol.md's conversations, played against servers and clients.

`document` finds the conversations, `notation` reads them, `stage` plays them. What is at the other
end is somebody else's: a server (`server`) or a client (`client`). tcprepl's own tests play the
same conversations, on stages that look inside as well.
"""
