"""The OpenAI API of an engine: HTTP on one side, the engine cores' sockets on the other."""
