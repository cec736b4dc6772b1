"""Boards: devices of other machines, behind TVM's RPC tracker."""
