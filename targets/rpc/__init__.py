"""Boards: devices that another machine compiles for, and reaches by TVM's RPC."""
