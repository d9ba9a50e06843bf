//! Specifications of the gateway's view: hosts, links, sessions, closers and its memory.
