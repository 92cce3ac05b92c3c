"""A small assembler of pickles: each function gives the opcodes that push one object."""

import pickle
import struct


def const(value):
    return pickle.dumps(value, 2)[2:-1]


def name(full):
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def raw(data):
    return pickle.BINBYTES + struct.pack("<I", len(data)) + data


def call(function, *arguments):
    return name(function) + b"(" + b"".join(arguments) + b"tR"
